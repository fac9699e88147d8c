package windows

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestANewBuildCountsOnlyWhenItRuns(t *testing.T) {
	t.Parallel()
	t0 := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	at := func(m int) time.Time { return t0.Add(time.Duration(m) * time.Minute) }
	var s settling
	defer func() {
		if s.due(at(22)) || !s.due(at(22).Add(saveEvery)) {
			t.Error("the file is written too often, or not at all")
		}
	}()
	for i, c := range []struct {
		build    string
		now, web time.Time
		reboot   string
		want     string
	}{
		{"1", at(0), at(-60), "", ""}, // the first build ever seen counts, whenever IIS was started
		{"1", at(1), at(-60), "updates of Windows", ""},
		{"2", at(10), at(-60), "", "before this build came"},
		{"2", at(11), at(5), "updates of Windows", "a reboot is pending"},
		{"2", at(12), time.Time{}, "", ""}, // IIS does not run: nothing old is loaded
		{"2", at(13), at(-60), "updates of Windows", ""},
		{"3", at(20), at(19), "", ""},
		{"", at(21), at(19), "", ""},
	} {
		if got := s.look(c.build, c.now, c.web, c.reboot); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%d: %q, want %q", i, got, c.want)
		}
		s.due(c.now)
		raw, err := json.Marshal(&s) // the agent is started anew
		again := settling{saved: s.saved}
		if err = errors.Join(err, json.Unmarshal(raw, &again)); err != nil {
			t.Fatal(err)
		}
		s = again
	}
}

func TestMsiexecIsRecognisedByWhatItApplies(t *testing.T) {
	t.Parallel()
	for cl, want := range map[string]bool{
		`msiexec.exe /update "C:\x\Exchange2019-KB5030524-x64-en.msp" /quiet`: true,
		`"C:\Windows\system32\msiexec.exe" /p exchange2016-kb1-x64-en.msp`:    true,
		`msiexec.exe /i agent.msi`:         false,
		`msiexec.exe /V`:                   false,
		`msiexec.exe /x exchange-tool.msi`: false,
	} {
		if exchangePatch(cl) != want {
			t.Errorf("%s: want %t", cl, want)
		}
	}
}
