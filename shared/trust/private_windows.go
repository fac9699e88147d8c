package trust

import "golang.org/x/sys/windows"

// ownerOnly is full access for SYSTEM, Administrators and the owner, for nobody else, and nothing inherited.
const ownerOnly = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;OW)"

// private keeps everybody but the owner, SYSTEM and Administrators from a file or directory: modes say nothing on Windows.
func private(path string) error {
	sd, err := windows.SecurityDescriptorFromString(ownerOnly)
	if err != nil {
		return err
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
}
