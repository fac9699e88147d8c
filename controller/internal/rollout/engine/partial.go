package engine

import (
	"fmt"
	"time"
)

// A PARTIAL server has given its answer, so it is not in flight and holds up nobody else of its wave. Its wave does not end while it
// stays PARTIAL, and no count of failures includes it.

// partly names a PARTIAL server with its reason.
func (m *Member) partly() string { return fmt.Sprintf("%s (%s)", m.Name, m.Reason) }

// listed appends the PARTIAL servers to a reason; nothing when there are none.
func listed(partial []string) string {
	if len(partial) == 0 {
		return ""
	}
	return fmt.Sprintf(", %d PARTIAL: %s", len(partial), some(partial, 3))
}

// stuck keeps a rollout in a wave that waits for nobody but PARTIAL servers. They are no success, so the wave does not end; and no
// failure, so nothing is halted or reverted by itself when the deadline passes: the progress clock stands, and the operator decides.
func (s *step) stuck(since time.Time, status string) {
	r, deadline := s.r, s.r.wave().progressDeadline()
	if since.IsZero() {
		since = s.now
	}
	r.Stuck, r.Progress = since, s.now
	if s.now.Sub(since) < deadline {
		s.phase(Running, "%s; waits for them to be APPLIED", status)
		return
	}
	s.phase(Running, "%s; so for more than %s, and it stays so until they are APPLIED or blocked, or somebody decides "+
		"(halt, revert, finish-now)", status, deadline)
}
