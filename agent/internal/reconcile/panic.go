package reconcile

import (
	"context"
	"errors"
	"fmt"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
)

// PanicRevert takes off everything that the journal knows of, whatever policy says, with service and controller down. It
// returns what was taken off. The caller freezes the agent first, so that the next start does not put it back.
func PanicRevert(ctx context.Context, d host.Driver, j Journal) (reverted []string, err error) {
	changes, err := j.Changes()
	if err != nil {
		return nil, err
	}
	hp, err := newHostPass(ctx, d, j, changes)
	if err != nil {
		return nil, err
	}
	left := revertAll(ctx, hp, changes)
	s := journal.Settlement{}
	dirs := map[string]string{}
	for _, c := range changes {
		if left[c.Ref] != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", c.Ref, left[c.Ref]))
			continue
		}
		s.Remove = append(s.Remove, c.Ref)
		reverted = append(reverted, c.Ref.String())
		for _, f := range c.Prior.Files {
			dirs[dirKey(f)] = f
		}
	}
	for _, c := range changes {
		if left[c.Ref] != nil {
			for _, f := range c.Prior.Files {
				delete(dirs, dirKey(f))
			}
		}
	}
	for _, f := range dirs {
		s.Forget = append(s.Forget, f)
	}
	return reverted, errors.Join(err, j.Settle(s))
}
