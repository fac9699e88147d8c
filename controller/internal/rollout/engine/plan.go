package engine

import (
	"hash/fnv"
	"sort"
)

// Plan gives the wave of each server, from 0: stable for a rollout's id, with the members of one database availability group
// spread over the waves, and those connected before others, so that the first wave has somebody to show it on.
func Plan(id string, strategy Strategy, seen []Seen) map[string]int {
	type place struct {
		s   Seen
		pos float64
	}
	hash := func(v string) float64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(id + "\x00" + v))
		x := h.Sum64()
		x ^= x >> 33 // fnv's high bits mix badly for short texts
		x *= 0xff51afd7ed558ccd
		x ^= x >> 33
		return float64(x>>11) / (1 << 53)
	}
	groups := map[string][]Seen{}
	for _, s := range seen {
		g := s.Attrs["dag"]
		if g != "" {
			g = s.Attrs["organisation"] + "\x00" + g
		} else {
			g = "\x00" + s.ID
		}
		groups[g] = append(groups[g], s)
	}
	var all []place
	for g, members := range groups {
		sort.Slice(members, func(i, j int) bool { return hash(members[i].ID) < hash(members[j].ID) })
		shift := hash(g)
		for i, m := range members {
			// Evenly over the circle, from a place of the group's own.
			pos := shift + float64(i)/float64(len(members))
			if pos >= 1 {
				pos--
			}
			all = append(all, place{m, pos})
		}
	}
	sort.Slice(all, func(i, j int) bool {
		if a, b := all[i], all[j]; a.s.Connected != b.s.Connected {
			return a.s.Connected
		} else if a.pos != b.pos {
			return a.pos < b.pos
		} else {
			return a.s.ID < b.s.ID
		}
	})
	out := map[string]int{}
	for w, wave := range strategy.Waves {
		n := len(all)
		switch {
		case w == len(strategy.Waves)-1:
		case wave.Count > 0:
			n = wave.Count
		case wave.Percent > 0:
			n = max(1, int(wave.Percent/100*float64(len(all))))
		}
		for _, p := range all {
			if _, taken := out[p.s.ID]; !taken && n > 0 && (w == len(strategy.Waves)-1 || wave.selects(p.s.Attrs)) {
				out[p.s.ID] = w
				n--
			}
		}
	}
	return out
}

func group(s Seen) string {
	if g := s.Attrs["dag"]; g != "" {
		return "dag " + g
	}
	if g := s.Attrs["site"]; g != "" {
		return "site " + g
	}
	return ""
}
