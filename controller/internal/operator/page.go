package operator

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"google.golang.org/protobuf/proto"
)

const (
	// Rows of a page when the request names none, and at most.
	defaultPage = 100
	maxPage     = 1000
	// maxPageBytes bounds a page; one row is always given.
	maxPageBytes = 4 << 20
	// maxPageToken bounds the token: no key is longer.
	maxPageToken = 4 << 10
)

// errPage is returned for a page token that is not from the listing.
var errPage = errors.New("page_token is not from this listing with this filter")

// pageRequest is a request for a page of a listing.
type pageRequest interface {
	proto.Message
	GetPageSize() int32
	GetPageToken() string
}

// query is which page is wanted: rows of a listing after a key, in the order of their keys.
type query struct {
	size int
	// listing identifies method and filter: a token of another listing names no place in this one.
	listing [8]byte
	// inside says that this is not the first page; then the rows are those after key.
	inside bool
	key    string
	// revision is the store's at the first page, for listings that have one.
	revision uint64
}

// parsePage reads a request. Errors: errPage.
func parsePage(r pageRequest) (query, error) {
	q := query{size: min(int(r.GetPageSize()), maxPage)}
	if q.size <= 0 {
		q.size = defaultPage
	}
	bare := proto.Clone(r).ProtoReflect()
	for _, name := range []string{"page_size", "page_token"} {
		for i := range bare.Descriptor().Fields().Len() {
			if fd := bare.Descriptor().Fields().Get(i); string(fd.Name()) == name {
				bare.Clear(fd)
			}
		}
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare.Interface())
	if err != nil {
		return q, err
	}
	sum := sha256.Sum256(append([]byte(bare.Descriptor().FullName()+"\x00"), raw...))
	copy(q.listing[:], sum[:])
	if r.GetPageToken() == "" {
		return q, nil
	}
	if len(r.GetPageToken()) > maxPageToken {
		return q, errPage
	}
	token, err := base64.RawURLEncoding.DecodeString(r.GetPageToken())
	if err != nil || len(token) < len(q.listing) || string(token[:len(q.listing)]) != string(q.listing[:]) {
		return q, errPage
	}
	revision, n := binary.Uvarint(token[len(q.listing):])
	if n <= 0 {
		return q, errPage
	}
	q.inside, q.revision, q.key = true, revision, string(token[len(q.listing)+n:])
	return q, nil
}

// page collects the rows of a page.
type page[M proto.Message] struct {
	query
	rows  []M
	bytes int
	last  string
	more  bool
}

// add adds the row with a key, the next in the order of keys. False: the page was full already; the row begins the next one.
func (p *page[M]) add(key string, row M) bool {
	row = sound(row)
	n := proto.Size(row)
	if len(p.rows) == p.size || len(p.rows) > 0 && p.bytes+n > maxPageBytes {
		p.more = true
		return false
	}
	p.rows, p.bytes, p.last = append(p.rows, row), p.bytes+n, key
	return true
}

// next is the token of the page after this one; empty when this is the last.
func (p *page[M]) next() string {
	if !p.more {
		return ""
	}
	token := binary.AppendUvarint(p.listing[:len(p.listing):len(p.listing)], p.revision)
	return base64.RawURLEncoding.EncodeToString(append(token, p.last...))
}

// paged gives a page of what is in memory: in the order of keys, which are different and stay the same for each row.
func paged[T any, M proto.Message](
	r pageRequest, all []T, key func(T) string, message func(T) M,
) (rows []M, next string, total uint32, err error) {
	q, err := parsePage(r)
	if err != nil {
		return nil, "", 0, err
	}
	type keyed struct {
		key string
		v   T
	}
	var left []keyed
	for _, v := range all {
		if k := key(v); !q.inside || k > q.key {
			left = append(left, keyed{k, v})
		}
	}
	sort.Slice(left, func(i, j int) bool { return left[i].key < left[j].key })
	p := page[M]{query: q}
	for _, x := range left {
		if !p.add(x.key, message(x.v)) {
			break
		}
	}
	return p.rows, p.next(), uint32(len(all)), nil
}

// number is a part of a key: numbers in their order.
func number(n uint64) string { return fmt.Sprintf("%020d", n) }
