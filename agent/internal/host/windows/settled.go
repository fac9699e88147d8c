package windows

import (
	"fmt"
	"strings"
	"time"
)

// settling remembers when the build that went was last seen. A new build counts only when no reboot is pending and IIS was
// started after the old one was last seen: until then the old code may still be loaded.
type settling struct {
	build    string
	lastSeen time.Time // of build
	oldSeen  time.Time // of the one before; zero: none was seen
}

// look takes what is there now and says why the build does not count yet; "" when it does. web is when IIS's service was
// started, zero when it is not running or can't be known; reboot names what waits for a reboot, "" when nothing does.
func (s *settling) look(build string, now, web time.Time, reboot string) string {
	if build != s.build {
		s.oldSeen = time.Time{}
		if s.build != "" {
			s.oldSeen = s.lastSeen
		}
		s.build = build
	}
	s.lastSeen = now
	switch {
	case build == "" || s.oldSeen.IsZero():
		return ""
	case reboot != "":
		return "a reboot is pending (" + reboot + ")"
	case !web.IsZero() && web.Before(s.oldSeen):
		return fmt.Sprintf("IIS runs since %s, before this build came: restart it (iisreset)", web.Format(time.RFC3339))
	}
	s.oldSeen = time.Time{}
	return ""
}

// exchangePatch says whether a command line is msiexec's, applying an update of Exchange.
func exchangePatch(commandLine string) bool {
	c := strings.ToLower(commandLine)
	return strings.Contains(c, "exchange") && strings.Contains(c, ".msp") &&
		(strings.Contains(c, "/p") || strings.Contains(c, "/update") || strings.Contains(c, "-p") || strings.Contains(c, "-update"))
}
