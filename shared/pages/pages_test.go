package pages

import (
	"errors"
	"fmt"
	"testing"
)

func TestEveryPageIsReadOnceInItsOrder(t *testing.T) {
	t.Parallel()
	read := ""
	err := Each(func(token string) (string, error) {
		read += "<" + token + ">"
		if len(read) > 9 {
			return "", nil
		}
		return fmt.Sprint(len(read)), nil
	})
	if want := "<><2><5><8>"; err != nil || read != want {
		t.Errorf("%s, %v; want %s", read, err, want)
	}
}

func TestAnErrorEndsTheListing(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	if err := Each(func(string) (string, error) { return "more", broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := Each(func(string) (string, error) { return "the same", nil }); !errors.Is(err, ErrEndless) {
		t.Error(err)
	}
}
