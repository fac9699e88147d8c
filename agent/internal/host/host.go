// Package host changes a server and reads back what is there. It owns the three action types; what differs between a
// real server and a lab one is behind Driver. It decides nothing: which action is wanted, and what was there before any
// of them, comes from its caller.
package host

import (
	"context"
	"errors"
	"fmt"
	"strings"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// Driver is one kind of server. Implementations pass the suite in hosttest.
type Driver interface {
	// Facts reads the server's facts. What is unknown is left empty.
	Facts(ctx context.Context) (*stopgapv1.Facts, error)
	// ApplicationHost reads applicationHost.config; name is for errors.
	ApplicationHost(ctx context.Context) (data []byte, name string, err error)
	// Redirection reads redirection.config, which says whether the configuration of IIS is shared and lies elsewhere. When
	// there is none, the error is fs.ErrNotExist.
	Redirection(ctx context.Context) (data []byte, name string, err error)
	// Files reads configuration files by physical directory, as written in applicationHost.config.
	iisconfig.Files
	// ReplaceConfig replaces a file of a directory atomically, keeping owner and mode. old nil creates it, data nil deletes it.
	// ErrChanged when the file is not old any more; it is untouched after any error.
	ReplaceConfig(ctx context.Context, dir, file string, old, data []byte) error
	// Effective asks IIS itself for the merged view of a rewrite section ("rules", "outboundRules") at an application
	// ("Default Web Site/owa"): XML as appcmd prints it. An *IISError is what IIS says when it can't read the configuration.
	// ErrNoWitness where there is no IIS to ask.
	Effective(ctx context.Context, app, section string) ([]byte, error)
	// FrontEnd gives the base address of the web site that clients talk to, with a loopback address, and its host name, "" for
	// none. An empty address: there is none, or it is not known.
	FrontEnd(ctx context.Context) (base, host string, err error)
	// Inactive says whether a component of Exchange is in maintenance.
	Inactive(component string) bool
	// Service reads a Windows service. A service that does not exist is Present false, not an error.
	Service(ctx context.Context, name string) (Service, error)
	// SetService brings a service to a start type and state and waits until it is there.
	SetService(ctx context.Context, name string, want Service) error
	// Dependents lists the running services that depend on a service, directly or not, in the order in which they are to be
	// stopped. SetService stops them before the service itself.
	Dependents(ctx context.Context, name string) ([]string, error)
	// Pool reads an application pool. A pool that does not exist is Present false.
	Pool(ctx context.Context, name string) (Pool, error)
	// SetPool sets autoStart (nil: absent) and brings the pool to a state. Between the two a crash can fall: a pool is
	// stopped last and started first, so that what is left can still be told from what was there before.
	SetPool(ctx context.Context, name string, want Pool) error
	// Watch calls changed whenever something that Facts or an action reads may have changed, until ctx ends; and once when
	// it has begun to watch, since what changed before that was seen by nobody. The directories are those of the
	// web.config files to watch besides.
	Watch(ctx context.Context, dirs []string, changed func()) error
}

// ErrNoWitness is returned where there is no IIS that could be asked.
var ErrNoWitness = errors.New("no IIS to ask")

// IISError is what IIS itself says about a configuration that it can't read.
type IISError struct{ Text string }

func (e *IISError) Error() string { return e.Text }

// ErrChanged is returned when a file changed between reading and replacing it.
var ErrChanged = errors.New("changed by somebody else meanwhile")

// Error is a refusal with a stable code for machines.
type Error struct {
	Code string
	Err  error
	// Conflict: something that is not ours stands in the place; counts as unprotected.
	Conflict bool
	// TakeOff: what is there of ours has no effect any more, and IIS refuses the configuration because of it. It has to go.
	TakeOff bool
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func failf(code, format string, args ...any) *Error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// Service states and start types, as services.msc and the protocol write them.
const (
	StartDisabled  = "DISABLED"
	StartManual    = "MANUAL"
	StartAutomatic = "AUTOMATIC"
	Running        = "RUNNING"
	Stopped        = "STOPPED"
	Started        = "STARTED"
)

// Service is the state of a Windows service.
type Service struct {
	Present   bool   `json:"present"`
	StartType string `json:"startType,omitempty"` // AUTOMATIC, MANUAL, DISABLED
	Delayed   bool   `json:"delayed,omitempty"`
	State     string `json:"state,omitempty"` // RUNNING, STOPPED
	// Recovery is the recovery actions as read, for the record: they are never set. "" where they can't be read.
	Recovery string `json:"recovery,omitempty"`
	// RecoverOnError: recovery actions are taken also when the service ends with an error, as it may when it is stopped. It is
	// off while an action holds the service.
	RecoverOnError bool `json:"recoverOnError,omitempty"`
}

// Pool is the state of an application pool.
type Pool struct {
	Present   bool   `json:"present"`
	AutoStart *bool  `json:"autoStart,omitempty"` // nil: the attribute is absent, which means true
	State     string `json:"state,omitempty"`     // STARTED, STOPPED
}

// Ref names an action of a mitigation's revision.
type Ref struct {
	Mitigation string
	Revision   uint32
	Action     string
}

func (r Ref) String() string { return fmt.Sprintf("%s@%d/%s", r.Mitigation, r.Revision, r.Action) }

// Prior is what an action found before it changed anything; enough to undo it.
type Prior struct {
	Service *Service `json:"service,omitempty"`
	// Dependents ran, depend on the service, and were stopped with it, in this order.
	Dependents []string `json:"dependents,omitempty"`
	Pool       *Pool    `json:"pool,omitempty"`
	// Files are the configuration files that were changed: a directory for its web.config, "DIRECTORY|FILE" for another file
	// of it. Their bytes are in Originals.
	Files []string `json:"files,omitempty"`
}

// Change is an action in force, or that may be in part: what a pass needs to keep or undo it.
type Change struct {
	Ref   Ref
	Spec  *stopgapv1.Action
	Prior Prior
}

// FileRef names a configuration file: a directory for its web.config, "DIRECTORY|FILE" for another file of it. No Windows path
// has the separator in it.
func FileRef(dir, file string) string {
	if file == iisconfig.WebConfig {
		return dir
	}
	return dir + "|" + file
}

// SplitRef is the inverse of FileRef.
func SplitRef(ref string) (dir, file string) {
	if d, f, ok := strings.Cut(ref, "|"); ok {
		return d, f
	}
	return ref, iisconfig.WebConfig
}

// Originals keeps what each changed configuration file was without us, by its FileRef; no bytes: there was no such file. Put is
// durable when it returns.
type Originals interface {
	Original(ref string) (data []byte, ok bool, err error)
	PutOriginal(ref string, data []byte) error
}

// Standing says how an action stands on the server.
type Standing int

// The standings.
const (
	// InPlace: everything is as the action wants it.
	InPlace Standing = iota
	// Foreign: it is as the action wants it and somebody else did it.
	Foreign
	// NotPresent: what the action would stop does not exist here; satisfied.
	NotPresent
	// Absent: not in place.
	Absent
	// Altered: ours is there, changed by somebody else.
	Altered
)

// Finding is what reading the server showed about an action.
type Finding struct {
	Standing Standing
	Evidence []*stopgapv1.Evidence
	// Detail is one line for people: what is in place, or what is missing.
	Detail string
	// Gaps are the attack requests (or, for a document without any, the applications) for which it is in place and not in
	// effect, each with the reason. The mitigation is then PARTIAL.
	Gaps []string
}

// OK says whether the action needs nothing done.
func (f Finding) OK() bool { return f.Standing <= NotPresent }

// Plan is what applying an action would do.
type Plan struct {
	// Now is how it stands at present.
	Now Finding
	// Prior is what was there; to be journaled before Apply.
	Prior Prior
	// Watch are the directories besides whose configuration decides about the effect.
	Watch []string
	// Touches lists what is affected besides: applications that restart, applications of a pool.
	Touches []string
}

// Action is one change on a server. Validate, then Plan, journal, Apply, and (after the pass was flushed) Verify.
type Action interface {
	// Validate says whether this server can have the action at all: module there, section not locked, file well-formed.
	Validate(ctx context.Context) error
	// Plan reads the server. It changes nothing.
	Plan(ctx context.Context) (Plan, error)
	// Apply makes the change, or stages it in the pass; idempotent. On error nothing of it stays staged.
	Apply(ctx context.Context) error
	// Verify reads the server and says how the action stands there.
	Verify(ctx context.Context) (Finding, error)
	// Revert undoes the change, or stages that; idempotent. What somebody else changed meanwhile stays theirs.
	Revert(ctx context.Context, prior Prior) error
	// VerifyReverted reads the server and says why the change is not undone; "" when it is.
	VerifyReverted(ctx context.Context, prior Prior) (string, error)
}

// evidence cuts texts to the protocol's bounds.
func evidence(action, subject, found string, sum []byte) *stopgapv1.Evidence {
	return &stopgapv1.Evidence{Action: action, Subject: cutText(subject), Found: cutText(found), Sha256: sum}
}

const maxEvidenceText = 512

func cutText(s string) string {
	return bounded.Text(s, maxEvidenceText)
}
