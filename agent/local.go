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
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
)

// local is the agent as the server's administrator sees it.
type local Agent

var _ localapi.Agent = (*local)(nil)

func (l *local) a() *Agent { return (*Agent)(l) }

// Status implements localapi.Agent.
func (l *local) Status(context.Context) (*stopgapv1.StatusResponse, error) {
	outcomes, err := l.journal.Outcomes()
	if err != nil {
		return nil, err
	}
	blocks, err := l.journal.Blocks()
	if err != nil {
		return nil, err
	}
	frozen, _, err := l.journal.Frozen()
	if err != nil {
		return nil, err
	}
	up := l.uplink.Status()
	l.mu.Lock()
	held := l.held
	l.mu.Unlock()
	s := &stopgapv1.StatusResponse{
		AgentId: l.id, Name: (*handler)(l).Hello().GetName(), AgentVersion: shared.Version, Facts: l.reconcile.Facts(),
		Controller: l.cfg.Controller, Connected: up.Connected, LastError: up.LastError,
		PolicyVersion: held.Versions.Targets, RootVersion: held.Versions.Root, RefusedError: held.AttemptedError, Frozen: frozen, Outbox: uint32(l.journal.OutboxLen()), Health: l.a().health(),
		UndoFile: filepath.Join(l.cfg.StateDir, journal.UndoFile),
	}
	if !up.LastContact.IsZero() {
		s.LastContact = timestamppb.New(up.LastContact)
	}
	if held.Versions.Targets > 0 {
		s.PolicyAcceptedAt, s.PolicyExpires = timestamppb.New(held.AcceptedAt), timestamppb.New(held.Expires)
	}
	s.CertificateExpires = timestamppb.New(l.creds.get().Cert.Leaf.NotAfter)
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
	if !mitigationID.MatchString(r.GetMitigation()) || len(r.GetMitigation()) > maxID || len(r.GetReason()) > maxBlockReason {
		return nil, status.Errorf(codes.InvalidArgument, "a mitigation id of 1 to %d bytes is needed, and a reason of at most %d", maxID, maxBlockReason)
	}
	blocks, err := l.journal.Blocks()
	if err != nil {
		return nil, err
	}
	if len(blocks) >= maxBlocks {
		return nil, status.Errorf(codes.ResourceExhausted, "%d blocks are the limit", maxBlocks)
	}
	if err := l.journal.SetBlock(r.GetMitigation(), journal.Block{Since: time.Now().UTC(), Reason: r.GetReason(), Keep: r.GetKeep()}); err != nil {
		return nil, err
	}
	l.log.Warn("blocked by the server's administrator", "mitigation", r.GetMitigation(), "keep", r.GetKeep(), "reason", r.GetReason())
	o, err := l.settle(ctx, r.GetMitigation())
	return &stopgapv1.BlockResponse{Outcome: o}, err
}

// Unblock implements localapi.Agent.
func (l *local) Unblock(ctx context.Context, r *stopgapv1.UnblockRequest) (*stopgapv1.UnblockResponse, error) {
	ok, err := l.journal.Unblock(r.GetMitigation())
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, status.Errorf(codes.NotFound, "%s is not blocked here", r.GetMitigation())
	}
	l.log.Warn("unblocked by the server's administrator", "mitigation", r.GetMitigation())
	o, err := l.settle(ctx, r.GetMitigation())
	return &stopgapv1.UnblockResponse{Outcome: o}, err
}

// SetFrozen implements localapi.Agent.
func (l *local) SetFrozen(ctx context.Context, r *stopgapv1.SetFrozenRequest) (*stopgapv1.SetFrozenResponse, error) {
	if err := l.journal.SetFrozen(r.GetFrozen(), time.Now().UTC()); err != nil {
		return nil, err
	}
	l.log.Warn("the server's administrator froze or thawed the agent", "frozen", r.GetFrozen())
	_, err := l.settle(ctx, "")
	changes, cerr := l.journal.Changes()
	out := &stopgapv1.SetFrozenResponse{Frozen: r.GetFrozen()}
	seen := map[string]bool{}
	for _, c := range changes {
		if ref := fmt.Sprintf("%s@%d", c.Ref.Mitigation, c.Ref.Revision); c.Ref.Revision > 0 && !seen[ref] {
			seen[ref] = true
			out.InForce = append(out.InForce, ref)
		}
	}
	return out, errors.Join(err, cerr)
}
