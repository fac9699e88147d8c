package policydir

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Sign adds a key's signature to what still lacks signatures and names the key: a draft root (by the keys of the root before
// it, and by its own), and the newest targets. It says what it signed, and what is still missing. Errors: ErrNotUnderstood.
func (d *Dir) Sign(k *signkey.Key) (lines []string, err error) {
	signer, err := k.Signer()
	if err != nil {
		return nil, errors.New("the key can't sign")
	}
	deciding, _, err := d.deciding()
	if err != nil {
		return nil, err
	}
	did := false
	if d.rootDraft != nil && (deciding.Allows(metadata.ROOT, k.ID) || d.root != nil && d.rootInfo.Allows(metadata.ROOT, k.ID)) {
		if signed(d.rootDraft.Signatures, k.ID) {
			lines = append(lines, fmt.Sprintf("root %d has this key's signature already", d.rootDraft.Signed.Version))
		} else {
			if _, err := d.rootDraft.Sign(signer); err != nil {
				return nil, err
			}
			if err := d.writeRoot(); err != nil {
				return nil, err
			}
			lines = append(lines, fmt.Sprintf("signed root %d", d.rootDraft.Signed.Version))
		}
		did = true
	}
	if deciding.Allows(metadata.TARGETS, k.ID) {
		if err := d.current(); err != nil {
			return nil, err
		}
		if signed(d.head.Signatures, k.ID) {
			lines = append(lines, fmt.Sprintf("targets %d has this key's signature already", d.head.Signed.Version))
		} else {
			if _, err := d.Diff(); err != nil { // nobody signs what can't be described to them
				return nil, err
			}
			if _, err := d.head.Sign(signer); err != nil {
				return nil, err
			}
			if err := d.writeTargets(); err != nil {
				return nil, err
			}
			lines = append(lines, fmt.Sprintf("signed targets %d", d.head.Signed.Version))
		}
		did = true
	}
	if !did {
		return nil, fmt.Errorf("key %s may sign nothing here: no root names it for what still lacks signatures", k.ID[:8])
	}
	return append(lines, d.Missing()...), nil
}

// current checks that the head names just the documents that are there, with their hashes: what is signed is what was read.
func (d *Dir) current() error {
	for p := range d.docs {
		if d.head.Signed.Targets[p] == nil {
			return fmt.Errorf("%s: targets/%s is not in targets %d; add it with `stopgap policy add`, or delete it", d.path, p, d.head.Signed.Version)
		}
	}
	for p, t := range d.head.Signed.Targets {
		sum := sha256.Sum256(d.docs[p])
		if d.docs[p] == nil || hex.EncodeToString(t.Hashes["sha256"]) != hex.EncodeToString(sum[:]) || t.Length != int64(len(d.docs[p])) {
			return fmt.Errorf("%s: targets/%s is not what targets %d says: it was changed by hand", d.path, p, d.head.Signed.Version)
		}
	}
	return nil
}

func signed(sigs []metadata.Signature, id string) bool {
	for _, s := range sigs {
		if s.KeyID == id {
			return true
		}
	}
	return false
}

// Missing says how many signatures of which role are still needed; nothing when the directory can be published.
func (d *Dir) Missing() []string {
	var out []string
	count := func(what string, sigs []metadata.Signature, info tufpolicy.RootInfo, role string) {
		n := 0
		for _, s := range sigs {
			if info.Allows(role, s.KeyID) {
				n++
			}
		}
		if need := info.Thresholds[role] - n; need > 0 {
			out = append(out, fmt.Sprintf("%s needs %d more of the %d signatures by %s keys", what, need, info.Thresholds[role], role))
		}
	}
	deciding, _, err := d.deciding()
	if err != nil {
		return []string{err.Error()}
	}
	if d.rootDraft != nil {
		what := fmt.Sprintf("root %d", d.rootDraft.Signed.Version)
		if d.root != nil {
			count(what+" (by the keys of root "+fmt.Sprint(d.rootInfo.Version)+")", d.rootDraft.Signatures, d.rootInfo, metadata.ROOT)
		}
		count(what, d.rootDraft.Signatures, deciding, metadata.ROOT)
	}
	count(fmt.Sprintf("targets %d", d.head.Signed.Version), d.head.Signatures, deciding, metadata.TARGETS)
	return out
}
