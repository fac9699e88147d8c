package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/store"
)

// Switch stops new applications for a scope, of everything or of one mitigation. It removes nothing: as in Exchange itself, where neither
// MitigationsEnabled nor MitigationsBlocked takes anything off.
type Switch struct {
	// Mitigation; empty: everything.
	Mitigation string `json:"mitigation,omitempty"`
	// Scope is "fleet", "label KEY=VALUE" or "agent ID".
	Scope  string    `json:"scope"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	Since  time.Time `json:"since"`
}

// Scopes.
const (
	ScopeFleet  = "fleet"
	scopeLabel  = "label "
	scopeAgent  = "agent "
	kSwitch     = "switch/"
	maxSwitches = 1000
)

// LabelScope and AgentScope name a scope.
func LabelScope(label string) string { return scopeLabel + label }

// AgentScope names one server.
func AgentScope(id string) string { return scopeAgent + id }

// ParseScope gives the label (KEY=VALUE) or the server of a scope; both are empty for the whole fleet.
func ParseScope(scope string) (label, agent string) {
	if id, ok := strings.CutPrefix(scope, scopeAgent); ok {
		return "", id
	}
	if l, ok := strings.CutPrefix(scope, scopeLabel); ok {
		return l, ""
	}
	return "", ""
}

// ErrSwitch is returned for a switch that can't be.
var ErrSwitch = errors.New("switch")

func (s Switch) covers(srv Server) bool {
	if s.Scope == ScopeFleet {
		return true
	}
	if id, ok := strings.CutPrefix(s.Scope, scopeAgent); ok {
		return id == srv.ID
	}
	k, v, _ := strings.Cut(strings.TrimPrefix(s.Scope, scopeLabel), "=")
	have, ok := srv.Labels[k]
	return ok && have == v
}

// switchedOff is the first switch that is about a mitigation on a server: the whole fleet first, then labels, then the server; of
// everything before of one mitigation. The caller holds the lock.
func (r *Rollout) switchedOff(id string, srv Server) *Switch {
	for i, s := range r.switches {
		if (s.Mitigation == "" || s.Mitigation == id) && s.covers(srv) {
			return &r.switches[i]
		}
	}
	return nil
}

// Order is the place of a switch among all: the fleet first, then labels, then servers.
func (s Switch) Order() string {
	rank := map[bool]string{true: "2", false: "1"}[strings.HasPrefix(s.Scope, scopeAgent)]
	if s.Scope == ScopeFleet {
		rank = "0"
	}
	return rank + s.Scope + "\x00" + s.Mitigation
}

// Switch switches off or on. It gives how many servers it is about. Errors: ErrSwitch.
func (r *Rollout) Switch(ctx context.Context, s Switch, off bool) (int, error) {
	if label, ok := strings.CutPrefix(s.Scope, scopeLabel); ok {
		if k, v, ok := strings.Cut(label, "="); !ok || k == "" || v == "" {
			return 0, fmt.Errorf("%w: label %q is not KEY=VALUE", ErrSwitch, label)
		}
	}
	key := kSwitch + s.Scope + "\x00" + s.Mitigation
	raw, err := json.Marshal(s)
	if err != nil {
		return 0, err
	}
	r.step.Lock()
	defer r.step.Unlock()
	r.mu.RLock()
	next := make([]Switch, 0, len(r.switches)+1)
	found := false
	for _, x := range r.switches {
		if x.Scope == s.Scope && x.Mitigation == s.Mitigation {
			found = true
			continue
		}
		next = append(next, x)
	}
	r.mu.RUnlock()
	switch {
	case !off && !found:
		return 0, fmt.Errorf("%w: nothing is switched off for %s", ErrSwitch, s.Scope)
	case off && len(next) >= maxSwitches:
		return 0, fmt.Errorf("%w: %d are the limit", ErrSwitch, maxSwitches)
	case off:
		next = append(next, s)
	}
	if _, err := r.cfg.Store.Txn(ctx, nil, []store.Op{{Key: key, Value: raw, Delete: !off}}); err != nil {
		return 0, err
	}
	sort.Slice(next, func(i, j int) bool { return next[i].Order() < next[j].Order() })
	r.mu.Lock()
	r.switches = next
	r.generation.Add(1)
	r.mu.Unlock()
	r.cfg.Changed()
	n := 0
	for _, srv := range r.cfg.Agents.Servers() {
		if s.covers(srv) {
			n++
		}
	}
	return n, nil
}

// Switches lists what is switched off, in the order in which it is looked at.
func (r *Rollout) Switches() []Switch {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return append([]Switch(nil), r.switches...)
}
