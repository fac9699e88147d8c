// Package protocol is what an agent says to its controller and what it does with what arrives. It owns the standing warnings. It
// carries nothing itself (package uplink) and decides nothing about the server (package reconcile).
package protocol

import (
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/agent/internal/event"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	"github.com/stopgap-em/stopgap/agent/internal/uplink"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Reconciler looks after the server (reconcile.Reconciler).
type Reconciler interface {
	// Facts of the server, as of the last pass.
	Facts() *stopgapv1.Facts
	// Kick makes it look at the server now.
	Kick()
	// Health is what it warns of.
	Health() []*stopgapv1.Health
}

// Config of a Handler. All of it is needed but Events.
type Config struct {
	// ID identifies the agent. Instance identifies the process, so that two processes with the same agent id can be distinguished.
	ID, Instance string
	// Name is a label for people; empty: the host name from the server's facts.
	Name       string
	Journal    *journal.Journal
	Policy     *policy.Keeper
	Reconciler Reconciler
	Warnings   *Warnings
	// Renew asks for a fresh certificate. Wake makes the uplink look for something to send. Parsed is called when a policy was read
	// that is new in effect, which took memory.
	Renew, Wake, Parsed func()
	// Events receives what happens; it may be nil.
	Events *event.Teller
	Logger hclog.Logger
}

// Handler implements uplink.Handler.
type Handler struct {
	cfg Config
}

var _ uplink.Handler = (*Handler)(nil)

// New makes a handler.
func New(cfg Config) *Handler { return &Handler{cfg: cfg} }

// Name is the agent's label for people.
func (h *Handler) Name() string {
	if h.cfg.Name != "" {
		return h.cfg.Name
	}
	return h.cfg.Reconciler.Facts().GetHost()
}

// maxHealth bounds the warnings in a message.
const maxHealth = 32

// Health is everything that the agent warns of now.
func (h *Handler) Health() []*stopgapv1.Health {
	out := append(h.cfg.Warnings.List(), h.cfg.Policy.Held().Health(time.Now())...)
	out = append(out, h.cfg.Reconciler.Health()...)
	return out[:min(len(out), maxHealth)]
}

// Hello implements uplink.Handler.
func (h *Handler) Hello() *stopgapv1.Hello {
	epoch, seq := h.cfg.Journal.Mark()
	held := h.cfg.Policy.Claimed()
	return &stopgapv1.Hello{
		AgentId: h.cfg.ID, InstanceId: h.cfg.Instance, AgentVersion: shared.Version, Name: h.Name(), Facts: h.cfg.Reconciler.Facts(),
		RootVersion: held.Versions.Root, TimestampVersion: held.Versions.Timestamp, SnapshotVersion: held.Versions.Snapshot,
		PolicyVersion: held.Versions.Targets, AttemptedVersion: held.Attempted, AttemptedError: held.AttemptedError,
		JournalEpoch: epoch, JournalSequence: seq, Health: h.Health(),
	}
}

// clockSkew is from which difference of the clocks on it is worth a warning.
const clockSkew = 5 * time.Minute

// Welcome implements uplink.Handler: what the controller has of us may be more than we know (this journal is an older copy
// of itself) or less (the controller is).
func (h *Handler) Welcome(w *stopgapv1.Welcome) error {
	if t := w.GetServerTime(); t != nil {
		if d := time.Since(t.AsTime()); d.Abs() > clockSkew {
			h.cfg.Warnings.Set("clock-skew", fmt.Sprintf("this server's clock differs from the controller's by %s; the end of the signed policy "+
				"is judged by this server's", d.Round(time.Second)))
		} else {
			h.cfg.Warnings.Set("clock-skew", "")
		}
	}
	epoch, last := h.cfg.Journal.Mark()
	ack := w.GetAcknowledged()
	if ack.GetEpoch() == epoch && ack.GetSequence() > last {
		h.cfg.Warnings.Raise("journal-rolled-back", "the journal is an older copy of itself (a restored snapshot?); the server was read again "+
			"and everything reported anew")
		if err := h.cfg.Journal.RollBack(); err != nil {
			return err
		}
		h.cfg.Reconciler.Kick()
		return nil
	}
	acked := uint64(0)
	if ack.GetEpoch() == epoch {
		acked = ack.GetSequence()
	}
	_, pending, err := h.cfg.Journal.Pending(0, 1)
	if err != nil {
		return err
	}
	oldest := last + 1
	if len(pending) > 0 {
		oldest = pending[0].GetSequence()
	}
	if acked+1 < oldest {
		h.cfg.Logger.Warn("the controller knows less than it acknowledged (restored from a backup?); reporting everything again",
			"acknowledged", acked, "reported", oldest-1)
		return h.cfg.Journal.ReportAll()
	}
	return nil
}

// Policy implements uplink.Handler.
func (h *Handler) Policy(data []byte) (*stopgapv1.PolicyAck, *stopgapv1.PolicyNack) {
	before, held, changed, refused := h.cfg.Policy.Take(data, time.Now().UTC())
	if refused != nil {
		h.cfg.Logger.Error("policy refused; what is held stays", "timestamp", refused.Timestamp, "held", held.Versions.Targets,
			"error", refused.Err)
		h.cfg.Events.Tell(event.PolicyRefused, "A policy update was refused; what is held (version %d) stays. %s", held.Versions.Targets, refused)
		return nil, &stopgapv1.PolicyNack{Version: refused.Timestamp, HeldVersion: held.Versions.Timestamp, TargetsVersion: held.Versions.Targets,
			RootVersion: held.Versions.Root, Error: refused.Error(), Permanent: refused.Permanent}
	}
	if changed {
		h.cfg.Warnings.Set(policy.CodeNoRoot, "")
		if held.Versions.Targets != before.Versions.Targets || held.Versions.Root != before.Versions.Root {
			h.cfg.Logger.Info("policy accepted", "version", held.Versions.Targets, "root", held.Versions.Root, "documents", len(held.Documents))
		}
		if held.Versions.Targets != before.Versions.Targets || before.Expires.Before(time.Now()) {
			h.cfg.Reconciler.Kick()
			h.cfg.Parsed()
		}
	}
	return &stopgapv1.PolicyAck{Version: held.Versions.Timestamp, TargetsVersion: held.Versions.Targets, RootVersion: held.Versions.Root}, nil
}

// Assignment implements uplink.Handler.
func (h *Handler) Assignment(data []byte) bool {
	next := &stopgapv1.Assignment{}
	if err := proto.Unmarshal(data, next); err != nil {
		h.cfg.Logger.Error("assignment can't be decoded", "error", err)
		return false
	}
	old, err := h.cfg.Journal.Assignment()
	if err != nil {
		h.cfg.Logger.Error("assignment", "error", err)
		return false
	}
	if old.GetControllerEpoch() == next.GetControllerEpoch() && next.GetGeneration() <= old.GetGeneration() && old != nil {
		return false
	}
	if len(next.GetItems()) > tufpolicy.MaxTargets {
		h.cfg.Logger.Error("assignment refused", "items", len(next.GetItems()), "limit", tufpolicy.MaxTargets)
		return false
	}
	if err := h.cfg.Journal.PutAssignment(next); err != nil {
		h.cfg.Logger.Error("assignment can't be kept", "error", err)
		return false
	}
	h.cfg.Reconciler.Kick()
	return true
}

// Acknowledged implements uplink.Handler.
func (h *Handler) Acknowledged(ack *stopgapv1.OutcomeAck) {
	if err := h.cfg.Journal.Acknowledged(ack.GetEpoch(), ack.GetSequence()); err != nil {
		h.cfg.Logger.Error("acknowledgement can't be kept; the outcomes are sent again", "error", err)
	}
}

// Command implements uplink.Handler.
func (h *Handler) Command(k stopgapv1.CommandKind) {
	switch k {
	case stopgapv1.CommandKind_COMMAND_KIND_RECHECK:
		h.cfg.Reconciler.Kick()
	case stopgapv1.CommandKind_COMMAND_KIND_SEND_EVERYTHING:
		if err := h.cfg.Journal.ReportAll(); err != nil {
			h.cfg.Logger.Error("reporting everything again failed", "error", err)
		}
		h.cfg.Wake()
	case stopgapv1.CommandKind_COMMAND_KIND_RENEW:
		h.cfg.Renew()
	case stopgapv1.CommandKind_COMMAND_KIND_UNSPECIFIED:
	default:
		h.cfg.Logger.Warn("a command of a newer controller", "kind", int(k))
	}
}

// Pending implements uplink.Handler.
func (h *Handler) Pending(after uint64, n int) (*stopgapv1.OutcomeBatch, error) {
	epoch, out, err := h.cfg.Journal.Pending(after, n)
	return &stopgapv1.OutcomeBatch{Epoch: epoch, Outcomes: out}, err
}

// Facts implements uplink.Handler.
func (h *Handler) Facts() *stopgapv1.Facts { return h.cfg.Reconciler.Facts() }

// Heartbeat implements uplink.Handler.
func (h *Handler) Heartbeat() *stopgapv1.Heartbeat {
	return &stopgapv1.Heartbeat{Health: h.Health(), TimestampVersion: h.cfg.Policy.Held().Versions.Timestamp}
}
