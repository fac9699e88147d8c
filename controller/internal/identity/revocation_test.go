package identity

import (
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func TestARevocationIsReadBackFromItsText(t *testing.T) {
	t.Parallel()
	for _, want := range []Revocation{
		{At: time.Date(2026, 11, 27, 3, 4, 5, 0, time.UTC), By: audit.Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_ADMIN, Name: "ann"},
			Reason: "stolen by night: car 7"},
		{At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), By: audit.Controller, Reason: "no reason given"},
	} {
		if got, ok := (Record{Revoked: want.String()}).Revocation(); !ok || got != want {
			t.Errorf("%q is read as %+v", want, got)
		}
	}
	if got, ok := (Record{Revoked: "long ago"}).Revocation(); !ok || got != (Revocation{Reason: "long ago"}) {
		t.Errorf("another text is read as %+v", got)
	}
	if _, ok := (Record{}).Revocation(); ok {
		t.Error("an agent that is not revoked has a revocation")
	}
}
