package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"sort"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/localapi"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
)

// local is the agent as the server's administrator sees it.
type local Agent

var _ localapi.Agent = (*local)(nil)

// Status implements localapi.Agent.
func (l *local) Status(context.Context) (*stopgapv1.StatusResponse, error) {
	up := l.uplink.Status()
	s, err := storedStatus(l.cfg.StateDir, l.journal, l.policy.Held())
	if err != nil {
		return nil, err
	}
	s.AgentId, s.Name, s.Facts, s.Health = l.id, l.protocol.Name(), l.reconcile.Facts(), l.protocol.Health()
	s.Controller, s.Connected, s.LastError = l.cfg.Controller, up.Connected, up.LastError
	if !up.LastContact.IsZero() {
		s.LastContact = timestamppb.New(up.LastContact)
	}
	s.CertificateExpires = timestamppb.New(l.creds.Get().Cert.Leaf.NotAfter)
	return s, nil
}

// storedStatus is what of a status stands in the journal.
func storedStatus(stateDir string, j *journal.Journal, held policy.Held) (*stopgapv1.StatusResponse, error) {
	outcomes, err := j.Outcomes()
	if err != nil {
		return nil, err
	}
	blocks, err := j.Blocks()
	if err != nil {
		return nil, err
	}
	frozen, _, err := j.Frozen()
	if err != nil {
		return nil, err
	}
	s := &stopgapv1.StatusResponse{
		AgentVersion: shared.Version, PolicyVersion: held.Versions.Targets, RootVersion: held.Versions.Root, PolicySource: held.Source,
		RefusedError: held.AttemptedError, Frozen: frozen, Outbox: uint32(j.OutboxLen()), UndoFile: filepath.Join(stateDir, journal.UndoFile),
	}
	if held.Versions.Targets > 0 {
		s.PolicyAcceptedAt, s.PolicyExpires = timestamppb.New(held.AcceptedAt), timestamppb.New(held.Expires)
	}
	for id, b := range blocks {
		s.Blocks = append(s.Blocks, &stopgapv1.Block{Mitigation: id, Since: timestamppb.New(b.Since), Reason: b.Reason, Keep: b.Keep})
	}
	sort.Slice(s.Blocks, func(i, j int) bool { return s.Blocks[i].GetMitigation() < s.Blocks[j].GetMitigation() })
	for _, o := range outcomes {
		s.Outcomes = append(s.Outcomes, o)
	}
	sort.Slice(s.Outcomes, func(i, j int) bool { return s.Outcomes[i].GetMitigation() < s.Outcomes[j].GetMitigation() })
	return s, nil
}

const (
	maxBlockReason = 300
	maxBlocks      = 1000
	maxID          = 40
)

var mitigationID = regexp.MustCompile(`^[A-Za-z0-9]([-._]?[A-Za-z0-9])*$`)

// settle makes a pass now and gives the outcome of one mitigation after it.
func (l *local) settle(ctx context.Context, id string) (*stopgapv1.Outcome, error) {
	if err := l.reconcile.Pass(ctx); err != nil {
		return nil, fmt.Errorf("it is kept, and takes effect when the server can be read: %w", err)
	}
	all, err := l.journal.Outcomes()
	return all[id], err
}

// Block implements localapi.Agent.
func (l *local) Block(ctx context.Context, r *stopgapv1.BlockRequest) (*stopgapv1.BlockResponse, error) {
	if err := setBlock(l.journal, r); err != nil {
		return nil, err
	}
	l.log.Warn("blocked by the server's administrator", "mitigation", r.GetMitigation(), "keep", r.GetKeep(), "reason", r.GetReason())
	o, err := l.settle(ctx, r.GetMitigation())
	return &stopgapv1.BlockResponse{Outcome: o}, err
}

func setBlock(j *journal.Journal, r *stopgapv1.BlockRequest) error {
	if !mitigationID.MatchString(r.GetMitigation()) || len(r.GetMitigation()) > maxID || len(r.GetReason()) > maxBlockReason {
		return status.Errorf(codes.InvalidArgument, "a mitigation id of 1 to %d bytes is needed, and a reason of at most %d", maxID, maxBlockReason)
	}
	blocks, err := j.Blocks()
	if err != nil {
		return err
	}
	if len(blocks) >= maxBlocks {
		return status.Errorf(codes.ResourceExhausted, "%d blocks are the limit", maxBlocks)
	}
	return j.SetBlock(r.GetMitigation(), journal.Block{Since: time.Now().UTC(), Reason: r.GetReason(), Keep: r.GetKeep()})
}

// Unblock implements localapi.Agent.
func (l *local) Unblock(ctx context.Context, r *stopgapv1.UnblockRequest) (*stopgapv1.UnblockResponse, error) {
	if err := unblock(l.journal, r); err != nil {
		return nil, err
	}
	l.log.Warn("unblocked by the server's administrator", "mitigation", r.GetMitigation())
	o, err := l.settle(ctx, r.GetMitigation())
	return &stopgapv1.UnblockResponse{Outcome: o}, err
}

func unblock(j *journal.Journal, r *stopgapv1.UnblockRequest) error {
	ok, err := j.Unblock(r.GetMitigation())
	if err == nil && !ok {
		return status.Errorf(codes.NotFound, "%s is not blocked here", r.GetMitigation())
	}
	return err
}

// SetFrozen implements localapi.Agent.
func (l *local) SetFrozen(ctx context.Context, r *stopgapv1.SetFrozenRequest) (*stopgapv1.SetFrozenResponse, error) {
	if err := l.journal.SetFrozen(r.GetFrozen(), time.Now().UTC()); err != nil {
		return nil, err
	}
	l.log.Warn("the server's administrator froze or thawed the agent", "frozen", r.GetFrozen())
	_, err := l.settle(ctx, "")
	out, ferr := frozenResponse(l.journal, r.GetFrozen())
	return out, errors.Join(err, ferr)
}

func frozenResponse(j *journal.Journal, frozen bool) (*stopgapv1.SetFrozenResponse, error) {
	changes, err := j.Changes()
	out := &stopgapv1.SetFrozenResponse{Frozen: frozen}
	seen := map[string]bool{}
	for _, c := range changes {
		if ref := fmt.Sprintf("%s@%d", c.Ref.Mitigation, c.Ref.Revision); c.Ref.Revision > 0 && !seen[ref] {
			seen[ref] = true
			out.InForce = append(out.InForce, ref)
		}
	}
	return out, err
}
