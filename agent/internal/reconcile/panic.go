package reconcile

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/outcome"
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
	went := map[string]bool{} // mitigations that are off altogether
	for _, c := range changes {
		went[c.Ref.Mitigation] = true
	}
	for _, c := range changes {
		if left[c.Ref] != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", c.Ref, left[c.Ref]))
			went[c.Ref.Mitigation] = false
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
	known, kerr := j.Outcomes()
	err = errors.Join(err, kerr)
	for id, o := range known {
		if (outcome.Of(o.GetState()).Applied || o.GetCode() == codeContradicted) && went[id] {
			s.Outcomes = append(s.Outcomes, &stopgapv1.Outcome{Mitigation: id, Revision: o.GetRevision(), DocumentSha256: o.GetDocumentSha256(), DriftRepairs: o.GetDriftRepairs(),
				State: stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, Code: "taken-off", Reason: "taken off by the server's administrator with `stopgap-agent panic-revert`",
				ObservedAt: timestamppb.Now()})
		}
	}
	for _, f := range dirs {
		s.Forget = append(s.Forget, f)
	}
	return reverted, errors.Join(err, j.Settle(s))
}
