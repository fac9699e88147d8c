// Package soc is the people of a security operations centre with their keys, in one process: three root keys and three targets
// keys, two of each needed. Tests and the benchmark publish with it; the demo does the same with the real commands.
package soc

import (
	"context"
	"fmt"
	"path/filepath"
	"sort"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"google.golang.org/grpc"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// Threshold is how many of three keys must sign.
const Threshold = 2

const life = 90 * 24 * time.Hour

// SOC is the people and their policy directory.
type SOC struct {
	Path          string
	Root, Targets []*signkey.Key
	online        []signkey.Public
}

func three(role string) ([]*signkey.Key, []signkey.Public, error) {
	var keys []*signkey.Key
	var public []signkey.Public
	for range 3 {
		k, err := signkey.Generate(role)
		if err != nil {
			return nil, nil, err
		}
		keys, public = append(keys, k), append(public, k.Public)
	}
	return keys, public, nil
}

// For makes keys and a signed, empty policy for a controller with online keys.
func (o Online) For(path string) (*SOC, error) {
	return New(path, o.Snapshot.Public, o.Timestamp.Public)
}

// New is the same with the public halves of the online keys.
func New(path string, snapshot, timestamp signkey.Public) (*SOC, error) {
	s := &SOC{Path: path, online: []signkey.Public{snapshot, timestamp}}
	root, rootPub, err := three(signkey.RoleRoot)
	if err != nil {
		return nil, err
	}
	targets, targetsPub, err := three(signkey.RoleTargets)
	if err != nil {
		return nil, err
	}
	s.Root, s.Targets = root, targets
	if _, err := policydir.Init(path, policydir.InitConfig{Root: rootPub, Targets: targetsPub, RootThreshold: Threshold, TargetsThreshold: Threshold,
		Snapshot: snapshot, Timestamp: timestamp, RootLife: 365 * 24 * time.Hour, TargetsLife: life, Now: time.Now()}); err != nil {
		return nil, err
	}
	return s, s.Sign(append(root[:Threshold:Threshold], targets[:Threshold]...)...)
}

// Dir reads the policy directory.
func (s *SOC) Dir() (*policydir.Dir, error) { return policydir.Open(s.Path) }

// Sign lets people sign, one after the other.
func (s *SOC) Sign(keys ...*signkey.Key) error {
	for _, k := range keys {
		d, err := s.Dir()
		if err != nil {
			return err
		}
		if _, err := d.Sign(k); err != nil {
			return err
		}
	}
	return nil
}

// Add puts documents into the policy and signs it.
func (s *SOC) Add(files ...policydir.File) error {
	return s.edit(func(d *policydir.Dir) error {
		_, err := d.Add(files, time.Now(), life)
		return err
	})
}

// Remove takes a revision out of the policy and signs it.
func (s *SOC) Remove(id string, revision uint32) error {
	return s.edit(func(d *policydir.Dir) error {
		_, err := d.Remove(id, revision, time.Now(), life)
		return err
	})
}

// Permit sets what the controller may take off, and signs.
func (s *SOC) Permit(revert string) error {
	return s.edit(func(d *policydir.Dir) error {
		_, err := d.Permit("", revert, time.Now(), life)
		return err
	})
}

// Refresh makes a new version with an end, and signs it.
func (s *SOC) Refresh(life time.Duration) error {
	return s.edit(func(d *policydir.Dir) error {
		_, err := d.Refresh(time.Now(), life)
		return err
	})
}

func (s *SOC) edit(change func(*policydir.Dir) error) error {
	d, err := s.Dir()
	if err != nil {
		return err
	}
	if err := change(d); err != nil {
		return err
	}
	return s.Sign(s.Targets[:Threshold]...)
}

// Rotate makes the next root, signed by the first two root keys and those given.
func (s *SOC) Rotate(c policydir.RotateConfig, also ...*signkey.Key) error {
	d, err := s.Dir()
	if err != nil {
		return err
	}
	if c.Life == 0 {
		c.Life = 365 * 24 * time.Hour
	}
	if c.Now.IsZero() {
		c.Now = time.Now()
	}
	if _, err := d.RotateRoot(c); err != nil {
		return err
	}
	return s.Sign(append(s.Root[:Threshold:Threshold], also...)...)
}

// Files is what is published.
func (s *SOC) Files() (map[string][]byte, error) {
	d, err := s.Dir()
	if err != nil {
		return nil, err
	}
	return d.Files()
}

// Send hands files to a controller.
func Send(ctx context.Context, c stopgapv1.FleetServiceClient, files map[string][]byte) (*stopgapv1.PublishResponse, error) {
	st, err := c.Publish(ctx)
	if err != nil {
		return nil, err
	}
	var paths []string
	for p := range files {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		if st.Send(&stopgapv1.PublishRequest{Path: p, Content: files[p]}) != nil {
			break // the status comes with CloseAndRecv
		}
	}
	return st.CloseAndRecv()
}

// Publish publishes the directory as it is.
func (s *SOC) Publish(ctx context.Context, c stopgapv1.FleetServiceClient) (*stopgapv1.PublishResponse, error) {
	files, err := s.Files()
	if err != nil {
		return nil, err
	}
	return Send(ctx, c, files)
}

// Catalogue gives files of the catalogue by id; the fixed-builds table always among them.
func Catalogue(ids ...string) ([]policydir.File, error) {
	files, err := mitigation.Catalogue()
	if err != nil {
		return nil, err
	}
	var out []policydir.File
	for _, f := range files {
		wanted := f.Name == mitigation.FixedBuildsName
		for _, id := range ids {
			wanted = wanted || f.Name == id+".yaml"
		}
		if wanted {
			out = append(out, policydir.File{Name: f.Name, Content: f.Content})
		}
	}
	return out, nil
}

// SignTargets makes targets metadata for any documents at all, signed by these keys: what a careless or bribed signer can do.
func SignTargets(version int64, expires time.Time, docs map[string][]byte, keys ...*signkey.Key) ([]byte, error) {
	tg := metadata.Targets(expires.UTC().Truncate(time.Second))
	tg.Signed.Version = version
	for p, data := range docs {
		t, err := metadata.TargetFile().FromBytes(p, data, "sha256")
		if err != nil {
			return nil, err
		}
		tg.Signed.Targets[p] = t
	}
	return signed(tg, keys...)
}

func signed[T metadata.Roles](m *metadata.Metadata[T], keys ...*signkey.Key) ([]byte, error) {
	for _, k := range keys {
		signer, err := k.Signer()
		if err != nil {
			return nil, err
		}
		if _, err := m.Sign(signer); err != nil {
			return nil, err
		}
	}
	return m.ToBytes(false)
}

// Online is a controller's online keys: what somebody has who stole them.
type Online struct{ Snapshot, Timestamp *signkey.Key }

// LoadOnline reads those of a controller: in "online" of its data directory, unless it is told otherwise.
func LoadOnline(dir string) (o Online, err error) {
	if o.Snapshot, err = signkey.LoadPlain(filepath.Join(dir, "snapshot.pem"), signkey.RoleSnapshot); err != nil {
		return o, err
	}
	o.Timestamp, err = signkey.LoadPlain(filepath.Join(dir, "timestamp.pem"), signkey.RoleTimestamp)
	return o, err
}

// NewOnline makes keys for where there is no controller.
func NewOnline() (o Online, err error) {
	if o.Snapshot, err = signkey.Generate(signkey.RoleSnapshot); err != nil {
		return o, err
	}
	o.Timestamp, err = signkey.Generate(signkey.RoleTimestamp)
	return o, err
}

// Dial connects to a controller as the operator whose credentials are in a directory.
func Dial(credentials, addr string) (*grpc.ClientConn, error) {
	c, err := trust.LoadCredentials(credentials)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(addr, transport.DialOptions(trust.ClientTLS(c, ""))...)
}

// Sign makes snapshot and timestamp metadata for targets metadata, with any versions.
func (o Online) Sign(targets []byte, targetsVersion, snapshotVersion, timestampVersion int64, expires time.Time) (timestamp, snapshot []byte, err error) {
	sn := metadata.Snapshot(expires.UTC().Truncate(time.Second))
	sn.Signed.Version = snapshotVersion
	if sn.Signed.Meta["targets.json"], err = metaFile(targets, targetsVersion); err != nil {
		return nil, nil, err
	}
	if snapshot, err = signed(sn, o.Snapshot); err != nil {
		return nil, nil, err
	}
	ts := metadata.Timestamp(expires.UTC().Truncate(time.Second))
	ts.Signed.Version = timestampVersion
	if ts.Signed.Meta["snapshot.json"], err = metaFile(snapshot, snapshotVersion); err != nil {
		return nil, nil, err
	}
	timestamp, err = signed(ts, o.Timestamp)
	return timestamp, snapshot, err
}

func metaFile(data []byte, version int64) (*metadata.MetaFiles, error) {
	t, err := metadata.TargetFile().FromBytes("", data, "sha256")
	if err != nil {
		return nil, fmt.Errorf("soc: %w", err)
	}
	return &metadata.MetaFiles{Length: t.Length, Hashes: t.Hashes, Version: version}, nil
}
