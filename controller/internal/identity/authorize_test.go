package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/trust"
)

func TestEveryMethodSaysWhoMayCallItAndNobodyElseMay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	op, err := Init(dir, "lab", []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.IssueAgent(filepath.Join(dir, "agent"), "EX01"); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	foreignOp, err := Init(other, "elsewhere", []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	call := func(creds string) context.Context {
		if creds == "" {
			return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{}})
		}
		c, err := trust.LoadCredentials(creds)
		if err != nil {
			t.Fatal(err)
		}
		st := tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{c.Cert.Leaf}}}
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: st}})
	}
	callersOf := map[string]trust.Kind{"agent": trust.KindAgent, "operator": trust.KindOperator, "nobody": "", "operator of another fleet": ""}
	contexts := map[string]context.Context{"agent": call(filepath.Join(dir, "agent")), "operator": call(op), "nobody": call(""), "operator of another fleet": call(foreignOp)}
	methods := 0
	for _, svc := range []string{"AgentService", "FleetService"} {
		ms := stopgapv1.File_stopgap_v1_agent_proto.Services().ByName("AgentService")
		if svc == "FleetService" {
			ms = stopgapv1.File_stopgap_v1_fleet_proto.Services().ByName("FleetService")
		}
		for i := range ms.Methods().Len() {
			methods++
			full := fmt.Sprintf("/%s/%s", ms.FullName(), ms.Methods().Get(i).Name())
			want, ok := callers[full]
			if !ok {
				t.Errorf("%s: nobody said who may call it", full)
			}
			for who, kind := range callersOf {
				_, err := a.Authorize(contexts[who], full)
				if allowed := kind == want; allowed != (err == nil) {
					t.Errorf("%s by %s: %v", full, who, err)
				}
				if err != nil && status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.Unauthenticated {
					t.Errorf("%s by %s: refused with %s", full, who, status.Code(err))
				}
			}
		}
	}
	if methods != len(callers) {
		t.Errorf("%d methods, %d entries", methods, len(callers))
	}
	if _, err := a.Authorize(contexts["operator"], "/stopgap.v1.FleetService/Nothing"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an unknown method: %v", err)
	}
}

func TestInitRefusesADirectoryThatHoldsAFleet(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Init(dir, "lab", []string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, "lab", []string{"localhost"}); err == nil {
		t.Fatal("initialised twice")
	}
	if _, err := Load(t.TempDir()); err == nil {
		t.Fatal("loaded nothing")
	}
}
