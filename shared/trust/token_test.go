package trust

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

func TestATokenIsReadBackAsItWasWrittenAndNothingElseIsOne(t *testing.T) {
	t.Parallel()
	tok, err := NewToken([32]byte{1}, [32]byte{2}, 77)
	if err != nil {
		t.Fatal(err)
	}
	s := tok.String()
	if got, err := ParseToken(" " + s + "\n"); err != nil || got != tok {
		t.Fatalf("%v %v", got, err)
	}
	for name, bad := range map[string]string{
		"nothing": "", "half": s[:len(s)/2], "no prefix": strings.TrimPrefix(s, TokenPrefix), "a slip": strings.Replace(s, s[30:31], string(s[30]^1), 1),
		"more": s + "AA", "other characters": TokenPrefix + strings.Repeat("!", len(s)-len(TokenPrefix)),
	} {
		_, err := ParseToken(bad)
		if err == nil {
			t.Errorf("%s is taken", name)
		} else if len(bad) > 30 && strings.Contains(err.Error(), bad[20:30]) {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	tok, err := NewToken([32]byte{1}, [32]byte{2}, 77)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.String())
	f.Add(TokenPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := ParseToken(s); err == nil && got.String() != strings.TrimSpace(s) {
			t.Fatal("two strings for one token")
		}
	})
}

func TestACertificateIsRenewedAtHalfOfItsLifeGiveOrTakeATenth(t *testing.T) {
	t.Parallel()
	now := time.Now()
	c := &x509.Certificate{NotBefore: now.Add(-Backdate), NotAfter: now.Add(100 * time.Hour)}
	for jitter, want := range map[float64]time.Duration{-1: 40 * time.Hour, 0: 50 * time.Hour, 1: 60 * time.Hour} {
		if got := RenewAt(c, jitter).Sub(now).Round(time.Minute); got != want {
			t.Errorf("jitter %v: after %s, want %s", jitter, got, want)
		}
	}
}
