package access

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/trust"
)

func TestEveryMethodSaysWhoMayCallItHowOftenHowLargeAndWhetherItIsAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gate := w.gate
	_, agentCert := w.agent(time.Hour)
	_, otherCert := w.agent(time.Hour)
	_, expired := w.agent(-24 * time.Hour)
	revokedID, revoked := w.agent(time.Hour)
	if err := w.reg.Revoke(t.Context(), revokedID, audit.Controller, "stolen"); err != nil {
		t.Fatal(err)
	}
	foreign := newWorld(t)
	foreign.ca.Fleet = "elsewhere"
	callers := map[string]struct {
		cert *x509.Certificate
		kind trust.Kind // "" may call nothing
	}{
		"nobody": {nil, KindNobody}, "an agent": {agentCert, trust.KindAgent}, "another agent": {otherCert, trust.KindAgent},
		"a revoked agent": {revoked, ""}, "a viewer": {w.person(trust.KindViewer), trust.KindViewer},
		"an operator": {w.person(trust.KindOperator), trust.KindOperator}, "an admin": {w.person(trust.KindAdmin), trust.KindAdmin},
		"an admin of another fleet": {foreign.person(trust.KindAdmin), ""},
	}
	changes := map[string]bool{"Publish": true, "Recheck": true, "Enroll": true, "RenewCertificate": true}
	// Methods that change something begin with one of these verbs, those that change nothing with none of them.
	verbs := []string{"Release", "Hold", "Create", "Revoke", "Reenroll", "Start", "Pause", "Resume", "Approve", "Halt", "Revert", "Finish",
		"Update", "Delete", "SetDefault", "Withhold", "Allow"}
	seen := 0
	for _, file := range []protoreflect.FileDescriptor{stopgapv1.File_stopgap_v1_agent_proto, stopgapv1.File_stopgap_v1_fleet_proto} {
		for i := range file.Services().Len() {
			svc := file.Services().Get(i)
			for j := range svc.Methods().Len() {
				seen++
				name := string(svc.Methods().Get(j).Name())
				full := fmt.Sprintf("/%s/%s", svc.FullName(), name)
				r, ok := methods[full]
				if !ok {
					t.Errorf("%s: nobody said who may call it", full)
					continue
				}
				if len(r.callers) == 0 || r.maxRequest <= 0 || r.maxRequest > large || (r.rate.Burst < 1 || r.rate.Every <= 0) && r.rate != noLimit {
					t.Errorf("%s declares %+v", full, r)
				}
				verb := func(v string) bool { return strings.HasPrefix(name, v) }
				if r.audited != (changes[name] || slices.ContainsFunc(verbs, verb)) {
					t.Errorf("%s: audited is %v; what changes something is", full, r.audited)
				}
				for who, c := range callers {
					_, err := gate.Authorize(with(t.Context(), c.cert), full)
					if allowed := slices.Contains(r.callers, c.kind); allowed != (err == nil) {
						t.Errorf("%s by %s: %v", full, who, err)
					}
					if code := status.Code(err); err != nil && code != codes.PermissionDenied && code != codes.Unauthenticated {
						t.Errorf("%s by %s: refused with %s", full, who, code)
					}
				}
				if _, err := gate.Authorize(with(t.Context(), expired), full); r.expired != (err == nil) {
					t.Errorf("%s with an expired certificate: %v", full, err)
				}
			}
		}
	}
	if seen != len(methods) {
		t.Errorf("%d methods, %d entries", seen, len(methods))
	}
	_, err := gate.Authorize(with(t.Context(), callers["an admin"].cert), "/stopgap.v1.FleetService/Nothing")
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("an unknown method: %v", err)
	}
	_, err = gate.Authorize(peer.NewContext(t.Context(), &peer.Peer{}), stopgapv1.FleetService_ListAgents_FullMethodName)
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("without TLS: %v", err)
	}
}

func TestRatesAreOfOneCallerAndAnotherDoesNotNotice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gate := w.gate
	_, loud := w.agent(time.Hour)
	_, quiet := w.agent(time.Hour)
	const method = stopgapv1.AgentService_Connect_FullMethodName
	refused := false
	for range methods[method].rate.Burst + 1 {
		_, err := gate.Authorize(with(t.Context(), loud), method)
		refused = refused || status.Code(err) == codes.ResourceExhausted
	}
	if !refused {
		t.Error("there is no limit")
	}
	if _, err := gate.Authorize(with(t.Context(), quiet), method); err != nil {
		t.Errorf("another agent: %v", err)
	}
	big := &stopgapv1.RenewCertificateRequest{Csr: make([]byte, 9<<10)}
	if err := tooLarge(stopgapv1.AgentService_RenewCertificate_FullMethodName, big); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a large request: %v", err)
	}
}

// signOn authenticates by a header, as a sign-on over REST would: "KIND NAME FLEET", good until ends.
type signOn struct{ ends time.Time }

func (s signOn) Authenticate(ctx context.Context) (Caller, bool, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		return Caller{}, false, nil
	}
	words := strings.Fields(values[0])
	if len(words) != 3 {
		return Caller{}, false, status.Error(codes.Unauthenticated, "not a token")
	}
	return Caller{Identity: trust.Identity{Kind: trust.Kind(words[0]), ID: words[1], Fleet: words[2]}, Expires: s.ends}, true, nil
}

func signedOn(ctx context.Context, token string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", token))
}

func TestACallerCanProveWhoTheyAreWithoutAClientCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, signOn{ends: time.Now().Add(time.Hour)})
	const list, publish, connect = stopgapv1.FleetService_ListAgents_FullMethodName, stopgapv1.FleetService_Publish_FullMethodName,
		stopgapv1.AgentService_Connect_FullMethodName
	for name, c := range map[string]struct {
		ctx    context.Context
		method string
		want   codes.Code
	}{
		"a viewer reads":                       {signedOn(t.Context(), "viewer vera lab"), list, codes.OK},
		"a viewer over TLS without one":        {signedOn(with(t.Context(), nil), "viewer vera lab"), list, codes.OK},
		"a viewer publishes":                   {signedOn(t.Context(), "viewer vera lab"), publish, codes.PermissionDenied},
		"an operator of another fleet":         {signedOn(t.Context(), "operator ben elsewhere"), publish, codes.PermissionDenied},
		"an agent":                             {signedOn(t.Context(), "agent 00ff lab"), connect, codes.PermissionDenied},
		"a token that is none":                 {signedOn(t.Context(), "rubbish"), list, codes.Unauthenticated},
		"a bad token beside a certificate":     {signedOn(with(t.Context(), w.person(trust.KindAdmin)), "rubbish"), list, codes.Unauthenticated},
		"nothing that proves anything, no TLS": {t.Context(), list, codes.Unauthenticated},
	} {
		ctx, err := w.gate.Authorize(c.ctx, c.method)
		if status.Code(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && (From(ctx).ID != "vera" || From(ctx).Certificate != nil) {
			t.Errorf("%s: the handler sees %+v", name, From(ctx))
		}
	}
	entries, _, err := w.audit.List(t.Context(), 0)
	if err != nil || len(entries) != 2 || !strings.Contains(entries[0].String(), "denied") {
		t.Errorf("the audit log has %v, %v; want the viewer and the agent that were denied", entries, err)
	}
	for name, ends := range map[string]time.Time{"that ended": time.Now().Add(-time.Second), "without an end": {}} {
		w := newWorld(t, signOn{ends: ends})
		if _, err := w.gate.Authorize(signedOn(t.Context(), "viewer vera lab"), list); status.Code(err) != codes.Unauthenticated {
			t.Errorf("a sign-on %s: %v", name, err)
		}
	}
}

func TestTheAuditLogKnowsEveryKindOfCaller(t *testing.T) {
	t.Parallel()
	for _, r := range methods {
		for _, kind := range r.callers {
			if a := (Caller{Identity: trust.Identity{Kind: kind, ID: "x"}}).Actor(); a.Kind == stopgapv1.ActorKind_ACTOR_KIND_UNSPECIFIED {
				t.Errorf("a caller of kind %q has no kind in the audit log", kind)
			}
		}
	}
}
