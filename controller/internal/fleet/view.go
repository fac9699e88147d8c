package fleet

import (
	"time"

	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// presence is what a record says of the connection.
func (r *record) presence(now time.Time) stopgapv1.Presence {
	switch {
	case r.connected:
		return stopgapv1.Presence_PRESENCE_CONNECTED
	case now.Sub(r.a.GetLastSeenAt().AsTime()) < staleAfter:
		return stopgapv1.Presence_PRESENCE_AWAY
	case now.Sub(r.a.GetLastSeenAt().AsTime()) < lostAfter:
		return stopgapv1.Presence_PRESENCE_STALE
	}
	return stopgapv1.Presence_PRESENCE_LOST
}

// view is a record as operators see it. The record must not change meanwhile: the caller holds the lock, or has a copy.
func (r *record) view(now time.Time) *stopgapv1.Agent {
	a := proto.CloneOf(r.a)
	a.Health = append(a.Health, r.own...)
	a.PolicyVersion = r.holds
	if r.refusedError != "" {
		a.RefusedUpdate = &stopgapv1.RefusedUpdate{TimestampVersion: r.refused, Error: r.refusedError}
	}
	a.Presence = r.presence(now)
	return a
}

// View is one server at one moment. Only what a listing shows of it is copied.
type View struct {
	r   record
	now time.Time
}

// Key orders servers by organisation, name and id.
func (v View) Key() string {
	return v.r.a.GetFacts().GetOrganisation() + "\x00" + v.r.a.GetName() + "\x00" + v.r.a.GetId()
}

// ID is the server's id.
func (v View) ID() string { return v.r.a.GetId() }

// Organisation is the server's organisation.
func (v View) Organisation() string { return v.r.a.GetFacts().GetOrganisation() }

// Presence is what is known of its connection.
func (v View) Presence() stopgapv1.Presence { return v.r.presence(v.now) }

// Agent is the server as operators see it; the caller may change it.
func (v View) Agent() *stopgapv1.Agent { return v.r.view(v.now) }

// Views gives every server, in no order.
func (f *Fleet) Views() []View {
	now := time.Now()
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := make([]View, 0, len(f.agents))
	for _, r := range f.agents {
		out = append(out, View{*r, now})
	}
	return out
}

// View gives one server by its full id.
func (f *Fleet) View(id string) (View, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if r := f.agents[id]; r != nil {
		return View{*r, time.Now()}, true
	}
	return View{}, false
}
