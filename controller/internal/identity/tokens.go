package identity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/shared/trust"
)

const (
	kToken = "identity/token/"
	// Bounds.
	maxTokens    = 10_000
	maxLabels    = 16
	maxLabel     = 63
	minTokenTTL  = time.Minute
	maxTokenTTL  = 30 * 24 * time.Hour
	maxTokenUses = 10_000
)

// Token is an enrolment token as it is kept: never its secret.
type Token struct {
	Hash      string            `json:"hash"`
	Expires   time.Time         `json:"expires"`
	UsesLeft  int               `json:"usesLeft"`
	Labels    map[string]string `json:"labels,omitempty"`
	AgentID   string            `json:"agentId,omitempty"`
	CreatedBy string            `json:"createdBy"`
}

// ID names a token to people.
func (t Token) ID() string { return t.Hash[:min(len(t.Hash), 12)] }

// token gives a token that can be used, by its hash. Errors: ErrToken.
func (r *Registry) token(ctx context.Context, hash string) (t Token, revision int64, err error) {
	kv, err := r.st.Get(ctx, kToken+hash)
	if errors.Is(err, store.ErrNotFound) {
		return t, 0, ErrToken
	}
	if err != nil {
		return t, 0, err
	}
	if err := json.Unmarshal(kv.Value, &t); err != nil {
		return t, 0, err
	}
	if time.Now().After(t.Expires) || t.UsesLeft < 1 {
		return t, 0, ErrToken
	}
	return t, kv.Revision, nil
}

// boundTokens are the deletions of every token that is bound to an agent: the last word about it is the one that counts.
func (r *Registry) boundTokens(ctx context.Context, id string) ([]store.Op, error) {
	all, err := r.Tokens(ctx)
	var ops []store.Op
	for _, t := range all {
		if t.AgentID == id {
			ops = append(ops, store.Op{Key: kToken + t.Hash, Delete: true})
		}
	}
	return ops, err
}

var labelKey = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// CreateToken makes a token. Errors: ErrRequest.
func (r *Registry) CreateToken(ctx context.Context, by audit.Actor, t Token, ttl time.Duration, root [32]byte,
	floor uint64) (trust.Token, Token, error) {
	switch {
	case ttl < minTokenTTL || ttl > maxTokenTTL:
		return trust.Token{}, t, fmt.Errorf("%w: a token lives %s to %s, not %s", ErrRequest, minTokenTTL, maxTokenTTL, ttl)
	case t.UsesLeft < 1 || t.UsesLeft > maxTokenUses:
		return trust.Token{}, t, fmt.Errorf("%w: a token is used 1 to %d times, not %d", ErrRequest, maxTokenUses, t.UsesLeft)
	case len(t.Labels) > maxLabels:
		return trust.Token{}, t, fmt.Errorf("%w: %d labels, limit %d", ErrRequest, len(t.Labels), maxLabels)
	}
	for k, v := range t.Labels {
		if !labelKey.MatchString(k) || len(v) > maxLabel || strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return trust.Token{}, t, fmt.Errorf("%w: label %.70q=%.70q: a key is lower-case letters, digits, dots, dashes, a value at most %d bytes",
				ErrRequest, k, v, maxLabel)
		}
	}
	have, err := r.Tokens(ctx)
	if err != nil {
		return trust.Token{}, t, err
	}
	if len(have) >= maxTokens {
		return trust.Token{}, t, fmt.Errorf("%w: %d tokens are the limit", ErrRequest, maxTokens)
	}
	secret, err := trust.NewToken(r.ca.TokenCA(), root, floor)
	if err != nil {
		return secret, t, err
	}
	sum := sha256.Sum256(secret.Secret[:])
	t.Hash, t.Expires, t.CreatedBy = hex.EncodeToString(sum[:]), time.Now().Add(ttl).UTC(), by.String()
	raw, err := json.Marshal(t)
	if err != nil {
		return secret, t, err
	}
	if _, err := r.st.Txn(ctx, nil, []store.Op{{Key: kToken + t.Hash, Value: raw}}); err != nil {
		return secret, t, err
	}
	r.audit.Append(ctx, by, "token-create", t.ID(), "%d uses until %s, labels %v, agent %s", t.UsesLeft, t.Expires.Format(time.RFC3339),
		t.Labels, or(t.AgentID, "new"))
	return secret, t, nil
}

// unreadable is the maker of a token that can't be read.
const unreadable = "(the stored token can't be read)"

// Tokens lists the tokens that can still be used, by end, and forgets those that can't. A stored token that can't be read is listed
// with what its key says, so that it can be revoked.
func (r *Registry) Tokens(ctx context.Context) ([]Token, error) {
	kvs, _, err := r.st.List(ctx, kToken)
	if err != nil {
		return nil, err
	}
	var out []Token
	var gone []store.Op
	for _, kv := range kvs {
		var t Token
		if err := json.Unmarshal(kv.Value, &t); err != nil || kToken+t.Hash != kv.Key {
			out = append(out, Token{Hash: strings.TrimPrefix(kv.Key, kToken), CreatedBy: unreadable})
			continue
		}
		if time.Now().After(t.Expires) {
			gone = append(gone, store.Op{Key: kv.Key, Delete: true})
			continue
		}
		out = append(out, t)
	}
	if len(gone) > 0 {
		if _, err := r.st.Txn(ctx, nil, gone); err != nil {
			return nil, err
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Expires.Before(out[j].Expires) })
	return out, nil
}

// RevokeToken takes a token back.
func (r *Registry) RevokeToken(ctx context.Context, id string, by audit.Actor) error {
	all, err := r.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.ID() == id {
			if _, err := r.st.Txn(ctx, nil, []store.Op{{Key: kToken + t.Hash, Delete: true}}); err != nil {
				return err
			}
			r.audit.Append(ctx, by, "token-revoke", id, "%d uses were left", t.UsesLeft)
			return nil
		}
	}
	return fmt.Errorf("%w: token %q", ErrUnknown, id)
}
