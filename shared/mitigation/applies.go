package mitigation

import (
	"slices"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/exchange"
)

// HasRole says whether a server has one of the roles a document is for.
func HasRole(m *stopgapv1.Mitigation, f *stopgapv1.Facts) bool {
	return slices.ContainsFunc(m.GetAppliesTo().GetRoles(), func(r stopgapv1.Role) bool { return slices.Contains(f.GetRoles(), r) })
}

// InRange says whether a document is for a build.
func InRange(m *stopgapv1.Mitigation, b exchange.Build) bool {
	rs := m.GetAppliesTo().GetExchange()
	for _, r := range rs {
		if r.GetProduct() != b.Product() {
			continue
		}
		from, errFrom := exchange.ParseBuild(r.GetFrom())
		to, errTo := exchange.ParseBuild(r.GetTo())
		if (r.GetFrom() == "" || errFrom == nil && b.Compare(from) >= 0) && (r.GetTo() == "" || errTo == nil && b.Compare(to) <= 0) {
			return true
		}
	}
	return len(rs) == 0
}

// Applies says whether a document is for a server, by role and build. A build that can't be read is in every range: it is not
// guessed that a server is safe.
func Applies(m *stopgapv1.Mitigation, f *stopgapv1.Facts) bool {
	b, err := exchange.ParseBuild(f.GetExchangeBuild())
	return HasRole(m, f) && (err != nil || InRange(m, b))
}
