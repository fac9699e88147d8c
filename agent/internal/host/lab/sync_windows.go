package lab

import (
	"io/fs"
	"os"
)

// syncDir does nothing: Windows has no directory sync; NTFS journals the rename.
func syncDir(string) error { return nil }

// keepOwner does nothing: a lab server on Windows belongs to whoever made it.
func keepOwner(*os.File, fs.FileInfo) error { return nil }
