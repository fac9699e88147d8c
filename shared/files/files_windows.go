package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Full access for SYSTEM and Administrators, for nobody else, and nothing inherited. Somebody who is no administrator (a person who
// tries things out) keeps access to what is theirs.
const (
	adminsOnly = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	andOwner   = adminsOnly + "(A;OICI;FA;;;OW)"
)

func descriptor() (*windows.SECURITY_DESCRIPTOR, error) {
	if windows.GetCurrentProcessToken().IsElevated() {
		return windows.SecurityDescriptorFromString(adminsOnly)
	}
	return windows.SecurityDescriptorFromString(andOwner)
}

// keepPrivate keeps everybody but SYSTEM and Administrators from a file: modes say nothing on Windows. A volume without access
// lists, as on a memory stick, keeps nobody out.
func keepPrivate(path string) error {
	sd, err := descriptor()
	if err != nil {
		return err
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	err = windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
	if errors.Is(err, windows.ERROR_NOT_SUPPORTED) || errors.Is(err, windows.ERROR_INVALID_FUNCTION) {
		return nil
	}
	return err
}

// makePrivateDir makes a directory with its access from the first moment on. One that is there must be a directory, no link to one,
// and belong to SYSTEM, Administrators or us: anybody may make directories below %ProgramData%, and who owns one decides who reads it.
func makePrivateDir(dir string) error {
	sd, err := descriptor()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return err
	}
	sa := &windows.SecurityAttributes{SecurityDescriptor: sd}
	sa.Length = uint32(unsafe.Sizeof(*sa))
	if err := windows.CreateDirectory(name, sa); err == nil || !errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return err
	}
	// By handle, so that what is looked at is what is changed.
	h, err := windows.CreateFile(name, windows.READ_CONTROL|windows.WRITE_DAC|windows.FILE_READ_ATTRIBUTES,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil, windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return err
	}
	defer func() { _ = windows.CloseHandle(h) }()
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(h, &info); err != nil {
		return err
	}
	if info.FileAttributes&windows.FILE_ATTRIBUTE_DIRECTORY == 0 || info.FileAttributes&windows.FILE_ATTRIBUTE_REPARSE_POINT != 0 {
		return fmt.Errorf("%w: it is no directory, or a link to one", ErrPlanted)
	}
	now, err := windows.GetSecurityInfo(h, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return err
	}
	owner, _, err := now.Owner()
	if err != nil {
		return err
	}
	if ok, err := trusted(owner); err != nil || !ok {
		return errors.Join(fmt.Errorf("%w: it belongs to %s", ErrPlanted, owner), err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetSecurityInfo(h, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION,
		nil, nil, dacl, nil)
}

// trusted says whether an owner is SYSTEM, Administrators, one of its members by the name of the machine's administrator, or us.
func trusted(owner *windows.SID) (bool, error) {
	for _, t := range []windows.WELL_KNOWN_SID_TYPE{windows.WinLocalSystemSid, windows.WinBuiltinAdministratorsSid} {
		if owner.IsWellKnown(t) {
			return true, nil
		}
	}
	u, err := windows.GetCurrentProcessToken().GetTokenUser()
	return err == nil && owner.Equals(u.User.Sid), err
}

// rename waits until the new name is on disk: Windows can't flush a directory.
func rename(from, to string) error {
	f, err := windows.UTF16PtrFromString(from)
	if err != nil {
		return err
	}
	t, err := windows.UTF16PtrFromString(to)
	if err != nil {
		return err
	}
	if err := windows.MoveFileEx(f, t, windows.MOVEFILE_REPLACE_EXISTING|windows.MOVEFILE_WRITE_THROUGH); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func flushDir(string) error { return nil }
