package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/procs"
)

// idleFor is how long an idle agent is looked at: longer than the pass that it makes each minute takes to come round.
const idleFor = 70 * time.Second

// BenchmarkIdleAgent is what an agent costs its server while nothing happens and the catalogue is applied: resident memory and the share
// of one core. Budget: 40 MiB, 0.5 %.
func BenchmarkIdleAgent(b *testing.B) {
	r := newRig(b)
	n := r.prepare(lab.Spec{Template: lab.Exchange2016CU19, Host: "EX01"}, nil)
	p := procs.New("agent", program(b, "stopgap-agent"), filepath.Join(b.TempDir(), "agent.log"), "--state", n.state, "run", "--controller", r.addr, "--host", "lab:"+n.dir)
	if err := p.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.Kill)
	ids := []string{"M1", "M2", "CVE-2021-26855", "CVE-2021-26857", "CVE-2021-26858", "CVE-2021-27065"}
	r.publish(catalogue(b, ids...)...)
	for _, id := range ids {
		r.expect(n, id, applied, "")
	}
	for b.Loop() {
		_, before, err := procs.Usage(p.PID())
		if err != nil {
			b.Fatal(err)
		}
		<-time.After(idleFor)
		rss, after, err := procs.Usage(p.PID())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(rss/1024, "MiB")
		b.ReportMetric(100*(after-before).Seconds()/idleFor.Seconds(), "%core")
	}
}
