package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// step is one act: what is done, and what its outcome proves.
type step struct {
	title string
	run   func(ctx context.Context) (proof string, err error)
}

func (d *demo) steps() []step {
	return []step{
		{"A key ceremony, a controller, and six servers of two organisations that enrol: different builds and roles, one patched, one Edge", d.fleetConnects},
		{"Exploits for each CVE, before anything is published", d.exploitsGetThrough},
		{"The SOC publishes the catalogue, signed by two people of three", d.publish},
		{"The same exploits again, and people at work", d.exploitsAreRefused},
		{"EX02's administrator says no to M1 on that server", d.adminBlocks},
		{"Somebody deletes M1's rule on EX01", d.driftIsRepaired},
		{"Fabrikam installs the fixed build, one server after the other", d.organisationIsFixed},
		{"The controller is killed with SIGKILL, an outcome happens meanwhile, and it comes back", d.controllerDies},
		{"A bad mitigation is signed and published, with the strategy canary", d.badOneStops},
		{"Somebody owns the controller: alters its data, and with its keys serves a policy that nobody signed", d.controllerIsStolen},
	}
}

func (d *demo) fleetConnects(ctx context.Context) (string, error) {
	if err := d.start(ctx); err != nil {
		return "", err
	}
	var list string
	err := patience.Wait(ctx, soon, func() error {
		as, err := d.agents(ctx)
		if err != nil {
			return err
		}
		list = ""
		for _, s := range d.servers {
			a := as[s.name]
			if a.GetPresence() != stopgapv1.Presence_PRESENCE_CONNECTED || a.GetId() != s.id {
				return fmt.Errorf("%s is not connected", s.name)
			}
			list += fmt.Sprintf("   %-8s %-10s Exchange %-13s %s\n", s.name, a.GetFacts().GetOrganisation(), a.GetFacts().GetExchangeBuild(), a.GetFacts().GetOs())
		}
		return nil
	})
	fmt.Print(list)
	return "six agents enrolled with a token, made their own keys, and hold a stream (TLS 1.3); they trust the policy root whose fingerprint the token carried", err
}

func (d *demo) exploitsGetThrough(ctx context.Context) (string, error) {
	hit := map[string][]string{}
	for _, s := range d.servers {
		if s.web == nil {
			continue
		}
		for _, a := range lab.Exploit(ctx, s.web.URL()) {
			if a.Through {
				hit[a.Name] = append(hit[a.Name], s.name)
			} else if hit[a.Name] == nil {
				hit[a.Name] = []string{}
			}
		}
		if err := people(ctx, s); err != nil {
			return "", err
		}
	}
	var cves []string
	for cve, on := range hit {
		if len(on) == 0 {
			return "", fmt.Errorf("%s gets through nowhere: the lab proves nothing", cve)
		}
		cves = append(cves, cve)
	}
	sort.Strings(cves)
	for _, cve := range cves {
		fmt.Printf("   %-15s gets through on %s\n", cve, strings.Join(hit[cve], ", "))
	}
	if len(cves) != 6 {
		return "", fmt.Errorf("%d CVEs tried, want 6", len(cves))
	}
	return "every CVE of the catalogue can be exploited somewhere: what follows is not refused by accident", nil
}

func people(ctx context.Context, s *server) error {
	for _, a := range lab.Work(ctx, s.web.URL()) {
		if !a.Through {
			return fmt.Errorf("%s does not work on %s: %s", a.Name, s.name, a.Got)
		}
	}
	return nil
}

// want is the state of each mitigation on each server after publishing.
var want = map[string]map[string]string{
	"EX01":   {"CVE-2021-26855": "APPLIED", "CVE-2021-26857": "APPLIED", "CVE-2021-26858": "APPLIED", "CVE-2021-27065": "APPLIED", "M1": "APPLIED", "M2": "APPLIED", "PING1": "APPLIED"},
	"EX02":   {"CVE-2021-26855": "APPLIED", "CVE-2021-26857": "n/a fixed", "CVE-2021-26858": "n/a fixed", "CVE-2021-27065": "n/a fixed", "M1": "APPLIED", "M2": "APPLIED", "PING1": "APPLIED"},
	"EX03":   {"CVE-2021-26855": "APPLIED", "CVE-2021-26857": "n/a version", "CVE-2021-26858": "n/a fixed", "CVE-2021-27065": "n/a fixed", "M1": "APPLIED", "M2": "APPLIED", "PING1": "APPLIED"},
	"EDGE01": {"CVE-2021-26855": "n/a role", "CVE-2021-26857": "n/a role", "CVE-2021-26858": "n/a role", "CVE-2021-27065": "n/a role", "M1": "n/a role", "M2": "n/a role", "PING1": "APPLIED"},
	"FX01":   {"CVE-2021-26855": "n/a fixed", "CVE-2021-26857": "n/a version", "CVE-2021-26858": "n/a fixed", "CVE-2021-27065": "n/a fixed", "M1": "n/a fixed", "M2": "APPLIED", "PING1": "APPLIED"},
	"FX02":   {"CVE-2021-26855": "n/a fixed", "CVE-2021-26857": "n/a version", "CVE-2021-26858": "n/a fixed", "CVE-2021-27065": "n/a fixed", "M1": "n/a fixed", "M2": "APPLIED", "PING1": "APPLIED"},
}

func (d *demo) publish(ctx context.Context) (string, error) {
	d.originals = map[string][]byte{}
	for _, n := range []string{"FX01", "FX02"} {
		files, err := lab.WebConfigs(d.server(n).dir)
		if err != nil {
			return "", err
		}
		for p, data := range files {
			d.originals[p] = data
		}
	}
	if _, err := d.offline(ctx, "policy", "--dir", d.policyDir(), "add", "catalogue"); err != nil {
		return "", err
	}
	if _, err := d.stopgap(ctx, "publish", d.policyDir()); err == nil {
		return "", fmt.Errorf("a policy without signatures was published")
	}
	if err := d.sign(ctx, "targets"); err != nil {
		return "", err
	}
	d.published = time.Now()
	if _, err := d.stopgap(ctx, "publish", d.policyDir()); err != nil {
		return "", err
	}
	var last time.Time
	err := d.live(ctx, soon, func(outs map[string]map[string]*stopgapv1.OutcomeRecord) error {
		last = d.published
		for name, ms := range want {
			for id, st := range ms {
				rec := outs[name][id]
				if state(rec) != st {
					return fmt.Errorf("%s on %s is %s (%s), want %s", id, name, state(rec), rec.GetOutcome().GetReason(), st)
				}
				if t := rec.GetRecordedAt().AsTime(); t.After(last) {
					last = t
				}
			}
		}
		return nil
	})
	return fmt.Sprintf("42 outcomes, the last %.1f s after publishing; every APPLIED was read back from the server's files, and the patched EX03 has the rules too: it still serves its unpatched neighbours",
		last.Sub(d.published).Seconds()), err
}

func (d *demo) exploitsAreRefused(ctx context.Context) (string, error) {
	refused := 0
	for _, s := range d.servers {
		if s.web == nil {
			continue
		}
		for _, a := range lab.Exploit(ctx, s.web.URL()) {
			if a.Through {
				return "", fmt.Errorf("%s still gets through on %s: %s", a.Name, s.name, a.Got)
			}
			refused++
		}
		if err := people(ctx, s); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d exploit requests refused on five servers; OWA sign-in, OWA, ActiveSync, EWS and Autodiscover answer on all of them", refused), nil
}

func (d *demo) adminBlocks(ctx context.Context) (string, error) {
	s := d.server("EX02")
	out, err := d.admin(ctx, s, "block", "M1", "--reason", "change freeze")
	if err != nil {
		return "", err
	}
	fmt.Print("   " + out)
	if err := d.expect(ctx, "EX02", "M1", "BLOCKED", ""); err != nil {
		return "", err
	}
	if !through(ctx, s, "CVE-2022-41040") {
		return "", fmt.Errorf("M1 is blocked on EX02 and its exploit is still refused")
	}
	if through(ctx, d.server("EX01"), "CVE-2022-41040") || through(ctx, s, "CVE-2026-42897") {
		return "", fmt.Errorf("the block reached further than M1 on EX02")
	}
	return "the rule is gone from that server, and only that rule; the operators see who said no, since when and why", nil
}

func through(ctx context.Context, s *server, cve string) bool {
	for _, a := range lab.Exploit(ctx, s.web.URL()) {
		if a.Name == cve {
			return a.Through
		}
	}
	return false
}

func (d *demo) expect(ctx context.Context, name, id, st, code string) error {
	return patience.Wait(ctx, soon, func() error {
		outs, err := d.outcomes(ctx)
		if err != nil {
			return err
		}
		rec := outs[name][id]
		if state(rec) != st || code != "" && rec.GetOutcome().GetCode() != code {
			return fmt.Errorf("%s on %s is %s (%s: %s), want %s %s", id, name, state(rec), rec.GetOutcome().GetCode(), rec.GetOutcome().GetReason(), st, code)
		}
		return nil
	})
}

func (d *demo) driftIsRepaired(ctx context.Context) (string, error) {
	s := d.server("EX01")
	path := filepath.Join(s.dir, "C", "inetpub", "wwwroot", "web.config")
	before, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	from := bytes.Index(before, []byte(`<rule name="Stopgap M1.1`))
	if from < 0 {
		return "", fmt.Errorf("no rule of M1 in %s", path)
	}
	to := from + bytes.Index(before[from:], []byte("</rule>")) + len("</rule>")
	began := time.Now()
	if err := os.WriteFile(path, append(append([]byte(nil), before[:from]...), before[to:]...), 0o600); err != nil {
		return "", err
	}
	err = patience.Wait(ctx, soon, func() error {
		now, err := os.ReadFile(path)
		if err == nil && !bytes.Contains(now, []byte("Stopgap M1.1")) {
			err = fmt.Errorf("the rule is still gone")
		}
		return err
	})
	if err != nil {
		return "", err
	}
	took := time.Since(began)
	if err := d.expect(ctx, "EX01", "M1", "APPLIED", "drift-repaired"); err != nil {
		return "", err
	}
	if through(ctx, s, "CVE-2022-41040") {
		return "", fmt.Errorf("the rule is back and the exploit gets through")
	}
	outs, err := d.outcomes(ctx)
	if err != nil {
		return "", err
	}
	fmt.Printf("   reported: %s\n", outs["EX01"]["M1"].GetOutcome().GetReason())
	return fmt.Sprintf("put back %.2f s later and reported as drift; the exploit is refused again", took.Seconds()), nil
}

func (d *demo) organisationIsFixed(ctx context.Context) (string, error) {
	for i, n := range []string{"FX01", "FX02"} {
		s := d.server(n)
		if err := lab.InstallUpdate(s.dir, fixedBuild[n], false, func() error {
			return d.expect(ctx, n, "M2", "PENDING", "servicing")
		}); err != nil {
			return "", err
		}
		if i == 0 {
			if err := d.expect(ctx, n, "M2", "APPLIED", ""); err != nil {
				return "", err
			}
			// Long enough for a wrong removal to have happened: the controller knows of the new build.
			if err := patience.Wait(ctx, soon, func() error {
				as, err := d.agents(ctx)
				if err == nil && as[n].GetFacts().GetExchangeBuild() != fixedBuild[n] {
					err = fmt.Errorf("the controller does not know of the new build")
				}
				return err
			}); err != nil {
				return "", err
			}
			if err := d.expect(ctx, n, "M2", "APPLIED", ""); err != nil {
				return "", err
			}
			fmt.Println("   FX01 is patched and keeps M2: FX02 behind it is not")
		}
	}
	for _, n := range []string{"FX01", "FX02"} {
		if err := d.expect(ctx, n, "M2", "REVERTED", "fixed"); err != nil {
			return "", err
		}
	}
	for p, data := range d.originals {
		now, err := os.ReadFile(p)
		if err != nil {
			return "", err
		}
		if !bytes.Equal(now, data) {
			return "", fmt.Errorf("%s is not what it was", p)
		}
	}
	return fmt.Sprintf("with FX02 patched the rule left both by itself; all %d web.config files of both servers are byte-identical to the originals", len(d.originals)), nil
}

func (d *demo) controllerDies(ctx context.Context) (string, error) {
	before, err := d.outcomes(ctx)
	if err != nil {
		return "", err
	}
	d.controller.Kill()
	out, err := d.admin(ctx, d.server("EX02"), "unblock", "M1")
	if err != nil {
		return "", err
	}
	fmt.Print("   with the controller dead: " + out)
	if err := d.controller.Start(); err != nil {
		return "", err
	}
	if err := d.expect(ctx, "EX02", "M1", "APPLIED", ""); err != nil {
		return "", err
	}
	after, err := d.outcomes(ctx)
	if err != nil {
		return "", err
	}
	n := 0
	for name, ms := range before {
		for id, rec := range ms {
			n++
			if name == "EX02" && id == "M1" {
				continue
			}
			if got := after[name][id]; got.GetJournalSequence() != rec.GetJournalSequence() || got.GetRecordedAt().AsTime() != rec.GetRecordedAt().AsTime() || state(got) != state(rec) {
				return "", fmt.Errorf("%s on %s was recorded as %v and is %v now", id, name, rec, got)
			}
		}
	}
	if err := patience.Wait(ctx, soon, func() error {
		as, err := d.agents(ctx)
		for _, s := range d.servers {
			if err == nil && as[s.name].GetPresence() != stopgapv1.Presence_PRESENCE_CONNECTED {
				err = fmt.Errorf("%s is not connected", s.name)
			}
		}
		return err
	}); err != nil {
		return "", err
	}
	return fmt.Sprintf("all %d outcomes are there as recorded, none twice; the one that happened meanwhile arrived, and all six agents are back", n), nil
}
