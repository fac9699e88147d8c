package simulate

import "sort"

// Bounds on what a tally remembers: of more different values than this the rest is counted together.
const (
	maxKinds = 2000
	others   = "(others)"
)

// Tally counts by name, bounded.
type Tally map[string]int64

func (t Tally) add(k string, n int64) {
	if _, ok := t[k]; !ok && len(t) >= maxKinds {
		k = others
	}
	t[k] += n
}

// Count is one line of a tally.
type Count struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
}

// Top gives the largest n, the rest of them together last.
func (t Tally) Top(n int) []Count {
	var out []Count
	rest := t[others]
	for k, c := range t {
		if k != others {
			out = append(out, Count{k, c})
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Count != out[j].Count {
			return out[i].Count > out[j].Count
		}
		return out[i].Name < out[j].Name
	})
	for len(out) > n {
		rest += out[len(out)-1].Count
		out = out[:len(out)-1]
	}
	if rest > 0 {
		out = append(out, Count{others, rest})
	}
	return out
}
