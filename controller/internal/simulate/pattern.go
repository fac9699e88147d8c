package simulate

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// Files gives the files of a pattern, in order. Directories that the pattern asks for and that can't be listed are returned as
// problems: filepath.Glob passes them over in silence.
func Files(pattern string) ([]string, []Problem, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil, nil, err
	}
	sort.Strings(files)
	var problems []Problem
	for at, c := range pattern {
		if !os.IsPathSeparator(uint8(min(c, 0x7f))) || !strings.ContainsAny(nextPart(pattern[at+1:]), "*?[") {
			continue
		}
		dirs, err := filepath.Glob(pattern[:max(at, 1)])
		if err != nil {
			return nil, nil, err
		}
		for _, d := range dirs {
			if why := listable(d); why != "" {
				problems = append(problems, Problem{File: d, What: why})
			}
		}
	}
	return files, problems, nil
}

// nextPart is the first name of a path.
func nextPart(path string) string {
	for i := range len(path) {
		if os.IsPathSeparator(path[i]) {
			return path[:i]
		}
	}
	return path
}

// listable says why a directory can't be listed. A file where the pattern has a directory is nothing that was lost.
func listable(name string) string {
	f, err := os.Open(name)
	if err == nil {
		defer func() { _ = f.Close() }()
		_, err = f.Readdirnames(1)
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, syscall.ENOTDIR) {
		return ""
	}
	return "the logs in it are not in this report: " + reason(err)
}
