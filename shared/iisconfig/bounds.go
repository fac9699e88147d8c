package iisconfig

import (
	"fmt"
	"slices"
)

// Bounds of what a model reads and remembers. Anybody who may write below a site can make deep and large configurations; each
// costs its own place only.
const (
	// maxSegments is how many segments of a URL path are judged. HTTP.sys refuses a URL with more (UrlSegmentMaxCount, "Http.sys
	// registry settings for Windows"), so IIS never composes one.
	maxSegments = 255
	// maxChainBytes bounds the web.config files of one path together: 32 of the largest that IIS reads.
	maxChainBytes = 32 * DefaultMaxBytes
	// maxElements bounds the elements of one section of one path, <clear/> and <remove> included. A server has some dozens.
	maxElements = 20_000
	// maxPlaces, maxKept and maxKey bound the composed paths that a model remembers: their number, the elements in them and the
	// length of a path. What is forgotten is composed again when it is asked for again.
	maxPlaces = 2000
	maxKept   = 200_000
	maxKey    = 4 << 10
	// maxSources and maxHeld bound the files that a model remembers, absent ones included, and their bytes.
	maxSources = 20_000
	maxHeld    = 64 << 20
)

// forget makes room. It is called between compositions only: a place that is in use keeps what it has.
func (m *Model) forget() {
	if len(m.places) >= maxPlaces || m.kept > maxKept {
		clear(m.places)
		m.kept = 0
	}
	if len(m.sources) > maxSources || len(m.dirs) > maxSources || m.held > maxHeld {
		clear(m.sources)
		clear(m.dirs)
		clear(m.places)
		m.held, m.kept = 0, 0
	}
}

func tooDeep(site *Site, segments int) *Invalid {
	return &Invalid{File: "site " + site.Name, Unsure: true,
		Msg: fmt.Sprintf("the URL path has %d segments; HTTP.sys accepts at most %d by default, and this version judges no more",
			segments, maxSegments)}
}

// size is the number of bytes of a file; a nil source has none.
func (s *source) size() int {
	if s == nil || s.doc == nil {
		return 0
	}
	return len(s.doc.Data)
}

// line gives the line of an offset, from 1. Unlike xmldoc.LineCol it does not read the file again each time.
func (s *source) line(off int) int {
	if s.newlines == nil {
		s.newlines = []int{}
		for i, b := range s.doc.Data {
			if b == '\n' {
				s.newlines = append(s.newlines, i)
			}
		}
	}
	n, _ := slices.BinarySearch(s.newlines, off)
	return n + 1
}
