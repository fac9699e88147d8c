package wine

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
)

// Programs of Windows that hold no code, written without a compiler for it: Wine and version checks look at their tables only.
// Source: PE Format, VERSIONINFO in the Windows API reference.

const (
	sectionRVA  = 0x1000
	fileAlign   = 0x200
	headerBytes = 0x200
	peOffset    = 0x80
)

// image makes an x64 image with one read-only section; dir is the data directory (0 exports, 2 resources) that the section is.
func image(section []byte, name string, dir int, dll bool) ([]byte, error) {
	size := (len(section) + fileAlign - 1) / fileAlign * fileAlign
	var b bytes.Buffer
	stub := make([]byte, peOffset)
	copy(stub, "MZ")
	binary.LittleEndian.PutUint32(stub[0x3c:], peOffset)
	b.Write(stub)
	b.WriteString("PE\x00\x00")
	characteristics := uint16(pe.IMAGE_FILE_EXECUTABLE_IMAGE | pe.IMAGE_FILE_LARGE_ADDRESS_AWARE)
	if dll {
		characteristics |= pe.IMAGE_FILE_DLL
	}
	opt := pe.OptionalHeader64{
		Magic: 0x20b, ImageBase: 0x180000000, SectionAlignment: sectionRVA, FileAlignment: fileAlign,
		MajorOperatingSystemVersion: 6, MajorSubsystemVersion: 6, SizeOfInitializedData: uint32(size),
		SizeOfImage: sectionRVA + uint32((size+sectionRVA-1)/sectionRVA*sectionRVA), SizeOfHeaders: headerBytes,
		Subsystem:          pe.IMAGE_SUBSYSTEM_WINDOWS_CUI,
		DllCharacteristics: pe.IMAGE_DLLCHARACTERISTICS_NX_COMPAT | pe.IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE,
		SizeOfStackReserve: 1 << 20, SizeOfStackCommit: 1 << 12, SizeOfHeapReserve: 1 << 20, SizeOfHeapCommit: 1 << 12,
		NumberOfRvaAndSizes: 16,
	}
	opt.DataDirectory[dir] = pe.DataDirectory{VirtualAddress: sectionRVA, Size: uint32(len(section))}
	sec := pe.SectionHeader32{VirtualSize: uint32(len(section)), VirtualAddress: sectionRVA, SizeOfRawData: uint32(size), PointerToRawData: headerBytes,
		Characteristics: pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ} //nolint:misspell // its name
	copy(sec.Name[:], name)
	for _, part := range []any{
		pe.FileHeader{Machine: pe.IMAGE_FILE_MACHINE_AMD64, NumberOfSections: 1, SizeOfOptionalHeader: uint16(binary.Size(opt)), Characteristics: characteristics},
		opt, sec,
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	b.Write(make([]byte, headerBytes-b.Len()))
	b.Write(section)
	b.Write(make([]byte, size-len(section)))
	return b.Bytes(), nil
}

// forwarder makes a DLL whose one export is that of another DLL ("advapi32.SystemFunction036").
func forwarder(dll, export, to string) ([]byte, error) {
	type exportDirectory struct {
		Characteristics, TimeDateStamp                            uint32
		MajorVersion, MinorVersion                                uint16
		Name, Base, NumberOfFunctions, NumberOfNames              uint32
		AddressOfFunctions, AddressOfNames, AddressOfNameOrdinals uint32
	}
	const tables = 40 // after the directory: function, name, ordinal
	var text bytes.Buffer
	put := func(s string) uint32 {
		rva := sectionRVA + tables + 12 + uint32(text.Len())
		text.WriteString(s + "\x00")
		return rva
	}
	rDLL, rExport, rTo := put(dll), put(export), put(to)
	var b bytes.Buffer
	for _, part := range []any{
		exportDirectory{Name: rDLL, Base: 1, NumberOfFunctions: 1, NumberOfNames: 1,
			AddressOfFunctions: sectionRVA + tables, AddressOfNames: sectionRVA + tables + 4, AddressOfNameOrdinals: sectionRVA + tables + 8},
		[]uint32{rTo, rExport, 0}, text.Bytes(),
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return image(b.Bytes(), ".rdata", 0, true)
}

// versioned makes a program whose file version is Major.Minor.Build.Revision.
func versioned(version string) ([]byte, error) {
	var v [4]uint32
	parts := strings.Split(version, ".")
	if len(parts) != len(v) {
		return nil, fmt.Errorf("version %q", version)
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, err
		}
		v[i] = uint32(n)
	}
	ms, ls := v[0]<<16|v[1], v[2]<<16|v[3]
	fixed := [13]uint32{0xFEEF04BD, 0x00010000, ms, ls, ms, ls, 0x3f, 0, 0x40004, 1, 0, 0, 0}
	var info bytes.Buffer
	key := utf16.Encode([]rune("VS_VERSION_INFO\x00"))
	length := 6 + 2*len(key)
	length += (4 - length%4) % 4
	if err := binary.Write(&info, binary.LittleEndian, []uint16{uint16(length + 52), 52, 0}); err != nil {
		return nil, err
	}
	if err := binary.Write(&info, binary.LittleEndian, key); err != nil {
		return nil, err
	}
	info.Write(make([]byte, length-info.Len()))
	if err := binary.Write(&info, binary.LittleEndian, fixed); err != nil {
		return nil, err
	}
	// Three levels: type 16 (version), name 1, language 0x409; then the data entry.
	type directory struct {
		Characteristics, TimeDateStamp uint32
		MajorVersion, MinorVersion     uint16
		Named, IDs                     uint16
		ID, Offset                     uint32
	}
	const level, sub = 24, 0x80000000
	var b bytes.Buffer
	for _, part := range []any{
		directory{IDs: 1, ID: 16, Offset: sub | level}, directory{IDs: 1, ID: 1, Offset: sub | 2*level}, directory{IDs: 1, ID: 0x409, Offset: 3 * level},
		[]uint32{sectionRVA + 3*level + 16, uint32(info.Len()), 0, 0}, info.Bytes(),
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return image(b.Bytes(), ".rsrc", 2, false)
}
