package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/pages"
)

// bad is what somebody writes at three in the morning: the pattern catches the attack, and all of OWA.
const bad = `id: HASTY
revision: 1
title: "OWA: refuse the new attack (and, by mistake, everything)"
severity: SEVERITY_HIGH
appliesTo:
  roles: [ROLE_MAILBOX]
actions:
  - id: rule
    urlRewrite:
      location: {site: EXCHANGE_FRONT_END, path: "/owa"}
      inbound: |
        <rule name="Stopgap HASTY.1 OWA - inbound" stopProcessing="true">
          <match url=".*" />
          <conditions>
            <add input="{REQUEST_URI}" pattern="owa" />
          </conditions>
          <action type="AbortRequest" />
        </rule>
probes:
  - effect: {request: "GET /owa/attack", expectAborted: true}
  - health: {request: "GET /owa/healthcheck.htm", expectStatus: 200, component: OwaProxy}
onProbeFailure: ON_PROBE_FAILURE_REVERT
`

// badOneStops publishes it with canary: one server gets it, finds that OWA is broken, heals itself, and nobody else ever has it.
func (d *demo) badOneStops(ctx context.Context) (string, error) {
	before := map[string][]byte{}
	for _, s := range d.servers {
		if s.web == nil {
			continue
		}
		files, err := lab.WebConfigs(s.dir)
		if err != nil {
			return "", err
		}
		for p, data := range files {
			before[p] = data
		}
	}
	file := filepath.Join(d.dir, "HASTY.yaml")
	if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
		return "", err
	}
	if _, err := d.offline(ctx, "policy", "--dir", d.policyDir(), "add", file); err != nil {
		return "", err
	}
	if err := d.sign(ctx, "targets"); err != nil {
		return "", err
	}
	if _, err := d.stopgap(ctx, "publish", d.policyDir(), "--strategy", "canary"); err != nil {
		return "", err
	}
	l, err := d.fleet.ListRollouts(ctx, &stopgapv1.ListRolloutsRequest{})
	if err != nil {
		return "", err
	}
	id := l.GetRollouts()[0].GetId()
	story, err := d.stopgap(ctx, "rollout", "show", id, "--watch")
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(strings.TrimSpace(story), "\n") {
		fmt.Println("   " + line)
	}
	r, err := d.fleet.GetRollout(ctx, &stopgapv1.GetRolloutRequest{RolloutId: id})
	if err != nil {
		return "", err
	}
	members, err := d.fleet.ListRolloutMembers(ctx, &stopgapv1.ListRolloutMembersRequest{RolloutId: id, PageSize: pages.Size})
	if err != nil {
		return "", err
	}
	tried := ""
	for _, m := range members.GetMembers() {
		if m.GetState() == stopgapv1.MemberState_MEMBER_STATE_WAITING {
			continue
		}
		if tried != "" {
			return "", fmt.Errorf("%s got it too", m.GetAgentName())
		}
		tried = m.GetAgentName()
	}
	if r.GetRollout().GetPhase() != stopgapv1.RolloutPhase_ROLLOUT_PHASE_REVERTED || tried == "" {
		return "", fmt.Errorf("the rollout is %s: %s", r.GetRollout().GetPhase(), r.GetRollout().GetReason())
	}
	for p, data := range before {
		if now, err := os.ReadFile(p); err != nil || string(now) != string(data) {
			return "", fmt.Errorf("%s is not what it was", p)
		}
	}
	for _, s := range d.servers {
		if s.web != nil {
			if err := people(ctx, s); err != nil {
				return "", err
			}
		}
	}
	// The SOC takes it out of the policy.
	if _, err := d.offline(ctx, "policy", "--dir", d.policyDir(), "remove", "HASTY@1"); err != nil {
		return "", err
	}
	if err := d.sign(ctx, "targets"); err != nil {
		return "", err
	}
	if _, err := d.stopgap(ctx, "publish", d.policyDir()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s alone got it, saw that OWA was broken and took it off before the controller said so; the others never had it; all %d web.config files are as before, and people work everywhere",
			tried, len(before)), patience.Wait(ctx, soon, func() error {
			l, err := d.fleet.ListRollouts(ctx, &stopgapv1.ListRolloutsRequest{})
			if err == nil && l.GetRollouts()[0].GetId() == id {
				err = fmt.Errorf("rollout %s is still there", id)
			}
			return err
		})
}
