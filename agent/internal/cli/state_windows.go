package cli

import (
	"path/filepath"

	"golang.org/x/sys/windows"
)

// defaultState is below ProgramData, as Windows itself names it: an environment can be missing, or somebody else's.
func defaultState() string {
	dir, err := windows.KnownFolderPath(windows.FOLDERID_ProgramData, 0)
	if err != nil {
		dir = `C:\ProgramData`
	}
	return filepath.Join(dir, "Stopgap")
}
