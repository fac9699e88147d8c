package windows

import (
	"fmt"
	"strings"
	"time"
)

// settling remembers when the build that went was last seen, in a file, since an agent may be started anew meanwhile. A new build
// counts only when no reboot is pending and IIS was started after the old one was last seen: until then the old code may still be loaded.
type settling struct {
	Build    string    `json:"build"`
	LastSeen time.Time `json:"lastSeen"`         // of Build
	OldSeen  time.Time `json:"oldSeen,omitzero"` // of the one before; zero: it is settled
	saved    time.Time
}

// saveEvery bounds how often the file is written while nothing changes: by so much too early the old build may seem to have gone, which
// errs on the side of "IIS was restarted".
const saveEvery = 10 * time.Minute

// look takes what is there now and says why the build does not count yet; "" when it does. web is when IIS's service was
// started, zero when it is not running or can't be known; reboot names what waits for a reboot, "" when nothing does.
func (s *settling) look(build string, now, web time.Time, reboot string) string {
	if build == "" { // can't be read now
		return ""
	}
	if build != s.Build {
		s.OldSeen = time.Time{}
		if s.Build != "" {
			s.OldSeen = s.LastSeen
		}
		s.Build, s.saved = build, time.Time{}
	}
	s.LastSeen = now
	switch {
	case s.OldSeen.IsZero():
		return ""
	case reboot != "":
		return "a reboot is pending (" + reboot + ")"
	case !web.IsZero() && web.Before(s.OldSeen):
		return fmt.Sprintf("IIS runs since %s, before this build came: restart it (iisreset)", web.Format(time.RFC3339))
	}
	s.OldSeen, s.saved = time.Time{}, time.Time{}
	return ""
}

// due says whether the file is to be written now.
func (s *settling) due(now time.Time) bool {
	if now.Sub(s.saved) < saveEvery {
		return false
	}
	s.saved = now
	return true
}

// exchangePatch says whether a command line is msiexec's, applying an update of Exchange.
func exchangePatch(commandLine string) bool {
	c := strings.ToLower(commandLine)
	return strings.Contains(c, "exchange") && strings.Contains(c, ".msp") &&
		(strings.Contains(c, "/p") || strings.Contains(c, "/update") || strings.Contains(c, "-p") || strings.Contains(c, "-update"))
}
