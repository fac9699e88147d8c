package exchange

import (
	"testing"

	"pgregory.net/rapid"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func TestFixedIsJudgedInsideTheCumulativeUpdateLine(t *testing.T) {
	t.Parallel()
	table, err := NewTable(&stopgapv1.FixedBuilds{Fixes: []*stopgapv1.Fix{
		{Cve: "M2", Builds: []string{"15.1.2507.69", "15.2.1544.41", "15.2.1748.46", "15.2.2562.43"}},
		{Cve: "M1", Builds: []string{"15.2.1118.20"}, AllFixedFrom: []string{"15.2.1258"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cve, build string
		want       FixState
	}{
		{"M2", "15.1.2507.68", Unfixed}, {"M2", "15.1.2507.69", Fixed}, {"M2", "15.2.1544.40", Unfixed}, {"M2", "15.2.1544.41", Fixed},
		{"M2", "15.2.1748.41", Unfixed}, // above line 1544's fix, and not fixed in its own
		{"M2", "15.2.2562.43", Fixed}, {"M2", "15.2.2562.17", Unfixed},
		{"M2", "15.2.1118.99", Unfixed},     // an older line never got a fix
		{"M2", "15.2.3000.1", UnknownBuild}, // a newer line is never guessed
		{"M1", "15.2.1258.1", Fixed}, {"M1", "15.2.9999.1", Fixed}, {"M1", "15.2.1118.19", Unfixed}, {"M1", "15.1.2507.1", UnknownBuild},
		{"unlisted", "15.2.1.1", Unfixed},
	} {
		b, err := ParseBuild(c.build)
		if err != nil {
			t.Fatal(err)
		}
		if got := table.State(c.cve, b); got != c.want {
			t.Errorf("%s on %s: %s, want %s", c.cve, c.build, got, c.want)
		}
	}
	b, _ := ParseBuild("15.2.3000.1")
	for _, c := range []struct {
		cves []string
		want FixState
	}{{nil, Unfixed}, {[]string{"M1", "M2"}, UnknownBuild}, {[]string{"M1", "unlisted"}, Unfixed}, {[]string{"M1"}, Fixed}} {
		if got := table.StateAll(c.cves, b); got != c.want {
			t.Errorf("%v: %s, want %s", c.cves, got, c.want)
		}
	}
}

func TestBuildsAreReadStrictlyAndOrderedAsNumbers(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "15", "15.2.1.1.1", "15.2.1.x", "15.2.1.-1", "15.2.1.65536", "15.2.1. 1", "15..1.1"} {
		if _, err := ParseBuild(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		part := rapid.Uint16()
		a := Build{part.Draw(rt, "a"), part.Draw(rt, "b"), part.Draw(rt, "c"), part.Draw(rt, "d")}
		got, err := ParseBuild(a.String())
		if err != nil || got != a || got.Compare(a) != 0 {
			rt.Fatalf("%v: %v %v", a, got, err)
		}
	})
	if c, err := CompareVersions("7.1.1993.2351", "7.1.1993"); err != nil || c != 1 {
		t.Errorf("got %d, %v", c, err)
	}
	if c, err := CompareVersions("1.0", "1.0.0"); err != nil || c != 0 {
		t.Errorf("got %d, %v", c, err)
	}
}
