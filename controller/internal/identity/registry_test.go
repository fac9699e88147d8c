package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/trust"
)

var admin = audit.Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_ADMIN, Name: "admin"}

func request(t testing.TB) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := trust.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return csr, key
}

func TestATokenBoundToAnAgentGivesItsIdBackWithAnotherKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, old := w.agent(time.Now())
	tok, err := w.reg.Reenroll(t.Context(), id, admin, time.Hour, [32]byte{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.reg.Check(id, old); !errors.Is(err, ErrKey) {
		t.Errorf("the old key: %v", err)
	}
	csr, _ := request(t)
	e, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "EX01", "another machine")
	if err != nil || e.ID != id {
		t.Fatalf("%v %v", e.ID, err)
	}
	if err := w.reg.Check(id, e.Cert); err != nil {
		t.Error(err)
	}
	if err := w.reg.Check(id, old); !errors.Is(err, ErrKey) {
		t.Errorf("the old key afterwards: %v", err)
	}
	if err := w.reg.Seen(t.Context(), id, "EX01", "m-"+id, old); !errors.Is(err, ErrMachine) {
		t.Errorf("the machine it was: %v", err)
	}
}

func TestARevokedAgentDoesNotComeBackWithAnotherToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tok, _, err := w.reg.CreateToken(t.Context(), admin, Token{UsesLeft: 5}, time.Hour, [32]byte{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	csr, _ := request(t)
	e, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "EX01", "m")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.reg.Revoke(t.Context(), e.ID, admin, "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "EX01", "m"); !errors.Is(err, ErrRevoked) {
		t.Errorf("the same key with another use: %v", err)
	}
	if _, err := w.reg.Renew(t.Context(), e.ID, e.Cert, csr); !errors.Is(err, ErrRevoked) {
		t.Errorf("a renewal: %v", err)
	}
}

func TestAnAgentThatTheControllerForgotIsKnownByItsCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	csr, key := request(t)
	id, err := trust.AgentID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.ca.issueAgent(&key.PublicKey, id, "EX01", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.reg.Check(id, c); err != nil {
		t.Fatal(err)
	}
	if err := w.reg.Seen(t.Context(), id, "EX01", "m", c); err != nil {
		t.Fatal(err)
	}
	if rec, ok := w.reg.Get(id); !ok || rec.Key != keyHash(c) || rec.MachineID != "m" {
		t.Errorf("%+v", rec)
	}
	if _, err := w.reg.Renew(t.Context(), id, c, csr); err != nil {
		t.Error(err)
	}
}

func TestACertificateIsJudgedByItsChainAndItsEnd(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	now := time.Now()
	_, fresh := w.agent(now)
	_, foreign := other.agent(now)
	for name, c := range map[string]struct {
		err  error
		good bool
	}{
		"fresh": {w.ca.Verify(fresh), true}, "expired within its grace": {w.ca.verifyAt(fresh, now.Add(DefaultAgentLife+Grace-time.Hour)), true},
		"beyond it":     {w.ca.verifyAt(fresh, now.Add(DefaultAgentLife+Grace+time.Hour)), false},
		"of another CA": {w.ca.Verify(foreign), false}, "a person's, two years later": {w.ca.verifyAt(w.person(trust.KindAdmin), now.Add(2*operatorLife)), false},
		"a person's, a day late": {w.ca.verifyAt(w.person(trust.KindAdmin), now.Add(operatorLife+24*time.Hour)), false},
	} {
		if (c.err == nil) != c.good {
			t.Errorf("%s: %v", name, c.err)
		}
	}
}

func TestRequestsForOtherKeysAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	big, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := trust.NewRequest(big)
	if err == nil {
		_, err = parseRequest(csr)
	}
	if err == nil {
		t.Error("a P-521 key is taken")
	}
	good, _ := request(t)
	good[len(good)-1] ^= 1
	if _, err := parseRequest(good); !errors.Is(err, ErrRequest) {
		t.Errorf("a request with a broken signature: %v", err)
	}
	if _, err := parseRequest(make([]byte, 5<<10)); !errors.Is(err, ErrRequest) {
		t.Errorf("5 KiB: %v", err)
	}
	csr, _ = request(t)
	tok, _, err := w.reg.CreateToken(t.Context(), admin, Token{UsesLeft: 1}, time.Hour, [32]byte{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "../x", "m"); !errors.Is(err, ErrRequest) {
		t.Errorf("a name with a path: %v", err)
	}
	for name, tok := range map[string]Token{"no uses": {}, "too many uses": {UsesLeft: 1e6}, "a label with a line break": {UsesLeft: 1, Labels: map[string]string{"a": "x\ny"}},
		"a label that is no name": {UsesLeft: 1, Labels: map[string]string{"A B": "x"}}} {
		if _, _, err := w.reg.CreateToken(t.Context(), admin, tok, time.Hour, [32]byte{}, 1); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARenewalInFlightDoesNotBringARevokedAgentBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tok, _, err := w.reg.CreateToken(t.Context(), admin, Token{UsesLeft: 100}, time.Hour, [32]byte{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		csr, _ := request(t)
		e, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "EX01", "")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { _, _ = w.reg.Renew(t.Context(), e.ID, e.Cert, csr) })
			wg.Go(func() { _ = w.reg.Seen(t.Context(), e.ID, "EX01", "m", e.Cert) })
		}
		if err := w.reg.Revoke(t.Context(), e.ID, admin, "stolen"); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if err := w.reg.Check(e.ID, e.Cert); !errors.Is(err, ErrRevoked) {
			t.Fatalf("revoked, and then %v", err)
		}
	}
}

func TestTheLastWordAboutAnAgentCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, _ := w.agent(time.Now())
	reenroll := func() trust.Token {
		tok, err := w.reg.Reenroll(t.Context(), id, admin, time.Hour, [32]byte{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	enrol := func(tok trust.Token) error {
		csr, _ := request(t)
		_, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "EX01", "m")
		return err
	}
	first := reenroll()
	second := reenroll()
	if err := enrol(first); !errors.Is(err, ErrToken) {
		t.Errorf("an earlier bound token: %v", err)
	}
	if err := w.reg.Revoke(t.Context(), id, admin, "stolen"); err != nil {
		t.Fatal(err)
	}
	if err := enrol(second); !errors.Is(err, ErrToken) {
		t.Errorf("a bound token after a revocation: %v", err)
	}
	if err := enrol(reenroll()); err != nil { // ordered on purpose
		t.Error(err)
	}
}

func TestAKeyThatWasTakenFromItsAgentComesBackWithNoOrdinaryToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tok, _, err := w.reg.CreateToken(t.Context(), admin, Token{UsesLeft: 5}, time.Hour, [32]byte{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	csr, _ := request(t)
	e, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "EX01", "m")
	if err != nil {
		t.Fatal(err)
	}
	bound, err := w.reg.Reenroll(t.Context(), e.ID, admin, time.Hour, [32]byte{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	fresh, _ := request(t)
	right, err := w.reg.Enroll(t.Context(), bound.Secret[:], fresh, "EX01", "m")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "EX01", "m"); !errors.Is(err, ErrKey) {
		t.Errorf("the thief's old key with an ordinary token: %v", err)
	}
	if err := w.reg.Check(right.ID, right.Cert); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

func TestATokenEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tok, kept, err := w.reg.CreateToken(t.Context(), admin, Token{UsesLeft: 5}, time.Hour, [32]byte{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	kept.Expires = time.Now().Add(-time.Second)
	raw, err := json.Marshal(kept)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.reg.st.Txn(t.Context(), nil, []store.Op{{Key: kToken + kept.Hash, Value: raw}}); err != nil {
		t.Fatal(err)
	}
	csr, _ := request(t)
	if _, err := w.reg.Enroll(t.Context(), tok.Secret[:], csr, "EX01", "m"); !errors.Is(err, ErrToken) {
		t.Errorf("after its end: %v", err)
	}
	if all, err := w.reg.Tokens(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("it is still listed: %v %v", all, err)
	}
}

func TestAReplacementOfTheCAThatACrashCutShortIsFinished(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(t *testing.T, dir string){
		"before the certificates": func(t *testing.T, dir string) {
			a, err := Load(dir, Files{})
			if err != nil {
				t.Fatal(err)
			}
			_, key, err := newCA("lab")
			if err != nil {
				t.Fatal(err)
			}
			raw, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(Files{}.caKey(dir)+nextSuffix, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			_ = a
		},
		"before the key": func(t *testing.T, dir string) {
			old, err := os.ReadFile(Files{}.caKey(dir))
			if err != nil {
				t.Fatal(err)
			}
			if err := BeginRotation(dir, Files{}); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(Files{}.caKey(dir), Files{}.caKey(dir)+nextSuffix); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(Files{}.caKey(dir), old, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"in the server's directory": func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, serverDir), filepath.Join(dir, serverDir+".old")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		w := newWorld(t)
		cut(t, w.dir)
		a, err := Load(w.dir, Files{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := a.ServerTLS(w.dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := a.IssueOperator(filepath.Join(t.TempDir(), "x"), "x", trust.KindViewer); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzEnrolmentRequest(f *testing.F) {
	csr, _ := request(f)
	f.Add(csr)
	f.Fuzz(func(t *testing.T, der []byte) {
		pub, err := parseRequest(der)
		if err == nil && (pub == nil || pub.Curve != elliptic.P256()) {
			t.Fatal("a request for another kind of key")
		}
	})
}

func TestBadTokensDoNotFillTheAuditLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	csr, _ := request(t)
	for i := range 4 * refusalsBurst {
		if _, err := w.reg.Enroll(t.Context(), []byte{byte(i), byte(i >> 8)}, csr, "EX01", "m"); !errors.Is(err, ErrToken) {
			t.Fatal(err)
		}
	}
	entries, _, err := w.log.List(t.Context(), 0)
	if err != nil || len(entries) == 0 || len(entries) > refusalsBurst {
		t.Errorf("%d entries, %v; want 1 to %d", len(entries), err, refusalsBurst)
	}
}
