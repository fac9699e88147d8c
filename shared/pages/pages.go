// Package pages reads the lists of FleetService to their end, page after page. It knows nothing of what is listed.
package pages

import (
	"errors"
)

// Size is how many rows are asked for at once: the most that a controller gives.
const Size = 1000

// ErrEndless is returned when a page leads back to itself, so that the listing would never end.
var ErrEndless = errors.New("the controller's listing does not end: a page names itself as the next one")

// Each calls next with the token of each page in turn, beginning with the empty one. Next handles one page and gives the token of
// the page after it, empty after the last. Errors: ErrEndless, and those of next.
func Each(next func(token string) (string, error)) error {
	token := ""
	for {
		after, err := next(token)
		if err != nil || after == "" {
			return err
		}
		if after == token {
			return ErrEndless
		}
		token = after
	}
}
