package reconcile

import (
	"context"
	"testing"

	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
)

// BenchmarkIdlePass is what a pass costs on a server on which everything is in place: what an idle agent does once a minute.
func BenchmarkIdlePass(b *testing.B) {
	g := newRig(b, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	g.publish("M1", "M2", "CVE-2021-26855", "CVE-2021-26857", "CVE-2021-26858", "CVE-2021-27065")
	g.pass()
	b.ReportAllocs()
	for b.Loop() {
		if err := g.r.Pass(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
