package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
	"github.com/stopgap-em/stopgap/e2e/soc"
	"github.com/stopgap-em/stopgap/e2e/thief"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/signkey"
)

// controllerIsStolen alters the controller's data by hand, which it notices at its next start; then a thief serves in its
// place, with its certificate and its online keys, and two policies that the people with the offline keys did not sign.
func (d *demo) controllerIsStolen(ctx context.Context) (string, error) {
	before, err := d.webConfigs()
	if err != nil {
		return "", err
	}
	if err := d.alterStore(ctx); err != nil {
		return "", err
	}
	online, err := soc.LoadOnline(filepath.Join(d.dir, "controller", "online"))
	if err != nil {
		return "", err
	}
	c, err := thief.Serve(filepath.Join(d.dir, "controller"), d.addr)
	if err != nil {
		return "", err
	}
	defer c.Stop()
	if err := patience.Wait(ctx, soon, func() error {
		if n := c.Connected(); n < len(d.servers) {
			return fmt.Errorf("%d of %d agents came to the thief", n, len(d.servers))
		}
		return nil
	}); err != nil {
		return "", err
	}
	for i, forge := range []func() ([]byte, map[string][]byte, error){d.alteredRule, d.everythingRemoved} {
		if err := d.forge(c, online, int64(i), forge); err != nil {
			return "", err
		}
		if err := d.allRefuse(ctx, c); err != nil {
			return "", err
		}
	}
	out, err := d.admin(ctx, d.server("EX01"), "status")
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "policy-refused") {
			fmt.Println("   EX01's agent says:", strings.Join(strings.Fields(line), " "))
		}
	}
	c.Stop()
	after, err := d.webConfigs()
	if err != nil {
		return "", err
	}
	for p, data := range before {
		if !bytes.Equal(after[p], data) {
			return "", fmt.Errorf("%s was changed", p)
		}
	}
	return fmt.Sprintf("six agents refused both, with the reason in their status; all %d web.config files are as they were", len(before)), d.recover(ctx)
}

func (d *demo) webConfigs() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, s := range d.servers {
		if s.web == nil {
			continue
		}
		files, err := lab.WebConfigs(s.dir)
		if err != nil {
			return nil, err
		}
		for p, data := range files {
			out[p] = data
		}
	}
	return out, nil
}

func (d *demo) storeFile() string { return filepath.Join(d.dir, "controller", "store.db") }

// alterStore changes a signed document in the store of the stopped controller, and checks that it does not start on that.
func (d *demo) alterStore(ctx context.Context) error {
	d.controller.Kill()
	data, err := os.ReadFile(d.storeFile())
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.storeFile()+".honest", data, 0o600); err != nil {
		return err
	}
	altered := bytes.ReplaceAll(data, []byte("name=\"Stopgap M1.1 PowerShell"), []byte("name=\"Stopgap M1.1 PowerSnail"))
	if bytes.Equal(altered, data) {
		return errors.New("M1's document is not in the store as written")
	}
	if err := os.WriteFile(d.storeFile(), altered, 0o600); err != nil {
		return err
	}
	_, err = procs.Output(ctx, d.program("stopgap-controller"), "--data", filepath.Join(d.dir, "controller"), "run", "--listen", d.addr)
	if err == nil || !strings.Contains(err.Error(), "altered") {
		return fmt.Errorf("the controller runs on altered data, or does not say why not: %w", err)
	}
	_, why, _ := strings.Cut(err.Error(), "stopgap-controller: ")
	fmt.Printf("   altered by hand, the controller does not start: %.150s...\n", why)
	return nil
}

// alteredRule is the targets metadata that was signed, with M1's rule turned into one that blocks nothing.
func (d *demo) alteredRule() ([]byte, map[string][]byte, error) {
	tg, docs, err := d.honest()
	if err != nil {
		return nil, nil, err
	}
	const m1 = "mitigations/M1/1.yaml"
	docs[m1] = bytes.Replace(docs[m1], []byte("AbortRequest"), []byte("None"), 1)
	return tg, docs, nil
}

// everythingRemoved is a next version that allows nothing, signed with a key of the thief's own.
func (d *demo) everythingRemoved() ([]byte, map[string][]byte, error) {
	k, err := signkey.Generate(signkey.RoleTargets)
	if err != nil {
		return nil, nil, err
	}
	docs := map[string][]byte{"policy.yaml": []byte("mitigations: []\n")}
	tg, err := soc.SignTargets(honestVersion+1, time.Now().Add(time.Hour), docs, k)
	return tg, docs, err
}

// honestVersion is what the demo published: the empty policy, the catalogue, the bad mitigation, and without it.
const honestVersion = 4

func (d *demo) honest() ([]byte, map[string][]byte, error) {
	tg, err := os.ReadFile(filepath.Join(d.policyDir(), "metadata", fmt.Sprintf("%d.targets.json", honestVersion)))
	if err != nil {
		return nil, nil, err
	}
	docs := map[string][]byte{}
	base := filepath.Join(d.policyDir(), "targets")
	err = filepath.WalkDir(base, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(base, p)
		if err != nil {
			return err
		}
		docs[filepath.ToSlash(rel)], err = os.ReadFile(p)
		return err
	})
	return tg, docs, err
}

// forge sends a forged policy with stolen online keys around it, counted above everything the honest controller signed.
func (d *demo) forge(c *thief.Controller, online soc.Online, i int64, make func() ([]byte, map[string][]byte, error)) error {
	tg, docs, err := make()
	if err != nil {
		return err
	}
	version := time.Now().Unix() + 1000 + i
	ts, sn, err := online.Sign(tg, honestVersion+i, version, version, time.Now().Add(time.Hour))
	if err != nil {
		return err
	}
	u := &stopgapv1.PolicyUpdate{TimestampVersion: uint64(version), Timestamp: ts, Snapshot: sn, Targets: tg}
	for p, data := range docs {
		u.Documents = append(u.Documents, &stopgapv1.PolicyTarget{Path: p, Content: data})
	}
	return c.Send(u, &stopgapv1.Assignment{ControllerEpoch: "thief", Generation: uint64(i + 1), PolicyVersion: uint64(honestVersion + i)})
}

func (d *demo) allRefuse(ctx context.Context, c *thief.Controller) error {
	for range d.servers {
		select {
		case a := <-c.Answers:
			if a.GetPolicyNack() == nil || !a.GetPolicyNack().GetPermanent() {
				return fmt.Errorf("an agent took what nobody signed: %v", a)
			}
		case <-time.After(patience.For(soon)):
			return errors.New("an agent did not answer")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// recover puts the honest store back, and waits until everybody is there again and holds what was signed.
func (d *demo) recover(ctx context.Context) error {
	data, err := os.ReadFile(d.storeFile() + ".honest")
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.storeFile(), data, 0o600); err != nil {
		return err
	}
	if err := d.controller.Start(); err != nil {
		return err
	}
	return patience.Wait(ctx, soon, func() error {
		as, err := d.agents(ctx)
		if err != nil {
			return err
		}
		for _, s := range d.servers {
			if a := as[s.name]; a.GetPresence() != stopgapv1.Presence_PRESENCE_CONNECTED || a.GetPolicyVersion() != honestVersion {
				return fmt.Errorf("%s is not back", s.name)
			}
		}
		return nil
	})
}
