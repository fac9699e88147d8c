package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Lifetimes of what is signed online. Agents without a controller for a day say `policy-expired` and apply nothing new.
const (
	timestampLife = 24 * time.Hour
	renewEvery    = 20 * time.Minute
	snapshotLife  = 7 * 24 * time.Hour
	resignAfter   = 24 * time.Hour
	renewRetry    = 30 * time.Second
)

// onlineKeys checks that a root lets this controller sign snapshot and timestamp.
func (p *Policy) onlineKeys(root []byte) error {
	info, err := tufpolicy.ReadRoot(root)
	if err != nil {
		return err
	}
	for role, k := range map[string]*signkey.Key{signkey.RoleSnapshot: p.cfg.Snapshot, signkey.RoleTimestamp: p.cfg.Timestamp} {
		if !info.Allows(role, k.ID) || info.Thresholds[role] != 1 {
			return fmt.Errorf("%w: root %d asks for %d of %v to sign the %s, this controller has %s; "+
				"make a root with its keys: `stopgap policy rotate-root --online DATA/online/public.json`", ErrOnlineKeys, info.Version, info.Thresholds[role],
				shortAll(info.Keys[role]), role, k.ID[:8])
		}
	}
	return nil
}

func shortAll(ids []string) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = id[:min(len(id), 8)]
	}
	return out
}

// nextVersion counts up, and never below the clock: a controller restored from a backup does not repeat versions that its
// agents have seen.
func nextVersion(last uint64, now time.Time) int64 {
	return max(int64(last)+1, now.Unix())
}

// signOnline signs a timestamp, and a snapshot where the targets changed or the old one is a day old.
func (p *Policy) signOnline(c *Current, last head, targetsChanged bool, now time.Time) (head, error) {
	h := head{Targets: c.head.Targets, Snapshot: last.Snapshot, SignedAt: last.SignedAt}
	if h.Targets == nil {
		h.Targets = last.Targets
	}
	var prev tufpolicy.Versions
	if len(last.Timestamp) > 0 {
		var err error
		if prev, err = tufpolicy.OnlineVersions(last.Timestamp, last.Snapshot); err != nil {
			return h, err
		}
	}
	if targetsChanged || now.Sub(h.SignedAt) > resignAfter {
		m, err := metaFile(h.Targets, int64(c.Version))
		if err != nil {
			return h, err
		}
		sn := metadata.Snapshot(now.Add(snapshotLife).UTC().Truncate(time.Second))
		sn.Signed.Version = nextVersion(prev.Snapshot, now)
		sn.Signed.Meta = map[string]*metadata.MetaFiles{"targets.json": m}
		if h.Snapshot, err = sign(sn, p.cfg.Snapshot); err != nil {
			return h, err
		}
		h.SignedAt = now
		prev.Snapshot = uint64(sn.Signed.Version)
	}
	m, err := metaFile(h.Snapshot, int64(prev.Snapshot))
	if err != nil {
		return h, err
	}
	ts := metadata.Timestamp(now.Add(timestampLife).UTC().Truncate(time.Second))
	ts.Signed.Version = nextVersion(prev.Timestamp, now)
	ts.Signed.Meta = map[string]*metadata.MetaFiles{"snapshot.json": m}
	h.Timestamp, err = sign(ts, p.cfg.Timestamp)
	return h, err
}

func metaFile(data []byte, version int64) (*metadata.MetaFiles, error) {
	t, err := metadata.TargetFile().FromBytes("", data, "sha256")
	if err != nil {
		return nil, err
	}
	return &metadata.MetaFiles{Length: t.Length, Hashes: t.Hashes, Version: version}, nil
}

func sign[T metadata.Roles](m *metadata.Metadata[T], k *signkey.Key) ([]byte, error) {
	s, err := k.Signer()
	if err != nil {
		return nil, errors.New("an online key can't sign")
	}
	if _, err := m.Sign(s); err != nil {
		return nil, err
	}
	return m.ToBytes(false)
}

// Renew signs a fresh timestamp.
func (p *Policy) Renew(ctx context.Context) error {
	p.change.Lock()
	defer p.change.Unlock()
	cur := p.Current()
	if cur.Version == 0 {
		return nil
	}
	if err := p.onlineKeys(cur.State.Root); err != nil {
		return err
	}
	next := *cur
	var err error
	if next.head, err = p.signOnline(cur, cur.head, false, time.Now()); err != nil {
		return err
	}
	if err := next.serve(next.head); err != nil {
		return err
	}
	return p.commit(ctx, cur, &next)
}

// Run renews the timestamp, now and then at its interval, until ctx ends.
func (p *Policy) Run(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = p.cfg.RenewEvery
		if err := p.Renew(ctx); err != nil && ctx.Err() == nil {
			p.cfg.Logger.Error("the policy's timestamp can't be renewed; agents call their policy stale after two hours and apply nothing new after a day", "error", err)
			wait = min(wait, renewRetry)
		}
	}
}
