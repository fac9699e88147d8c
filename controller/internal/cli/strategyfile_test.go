package cli

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

// wholeStrategy has every field of a strategy file.
const wholeStrategy = `{
  "name": "nightly",
  "about": "by ring",
  "waves": [
    {
      "count": 1,
      "selector": {
        "ring": "test*"
      },
      "minHealthyTime": "2m0s",
      "healthyDeadline": "10m0s",
      "progressDeadline": "1h0m0s",
      "prove": true,
      "maxFailures": {}
    },
    {
      "percent": 12.5,
      "maxInFlight": 30,
      "approval": true,
      "maxFailures": {
        "count": -1
      }
    },
    {}
  ],
  "maxFailures": {
    "count": 2,
    "percent": 5
  },
  "onHalt": "revert",
  "silence": "1m30s",
  "stagger": "15s",
  "windows": [
    {
      "days": [
        "Sat",
        "Sun"
      ],
      "from": "22:00",
      "to": "04:30"
    }
  ]
}`

func TestAStrategyFileIsWrittenAsItWasRead(t *testing.T) {
	t.Parallel()
	s, err := readStrategy([]byte(wholeStrategy))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := writeStrategy(s); err != nil || text != wholeStrategy {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestWhatIsWrongWithAStrategyFileIsSaidByPlace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"name":"x","waves":[{}],"onHalt":"perhaps"}`:                                                           `onHalt "perhaps"`,
		`{"name":"x","waves":[{}],"onHalt":"HOLD"}`:                                                              `onHalt "HOLD"`,
		`{"name":"x","waves":[{}],"onHalt":"hold","wave":1}`:                                                     "unknown field",
		`{"name":"x","waves":[{"minHealthyTime":"soon"}],"onHalt":"hold"}`:                                       "soon",
		`{"name":"x","waves":[{"maxFailures":{"count":-2}}],"onHalt":"hold"}`:                                    "waves[0].maxFailures",
		`{"name":"x","waves":[{},{"count":-1}],"onHalt":"hold"}`:                                                 "waves[1].count",
		`{"name":"x","waves":[{}],"onHalt":"hold","windows":[{"from":"25:00","to":"1:00"}]}`:                     "windows[0]",
		`{"name":"x","waves":[{}],"onHalt":"hold","windows":[{"days":["Someday"],"from":"22:00","to":"04:00"}]}`: `day "Someday"`,
		`{"name":"x","waves":[{}],"onHalt":"hold"} {}`:                                                           "something follows",
		``: "strategy",
	} {
		if _, err := readStrategy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzReadStrategy(f *testing.F) {
	f.Add([]byte(wholeStrategy))
	f.Add([]byte(`{"name":"x","waves":[{}],"onHalt":"hold"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readStrategy(data)
		if err != nil {
			return
		}
		text, err := writeStrategy(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readStrategy([]byte(text))
		if err != nil || !proto.Equal(s, again) {
			t.Fatalf("%v: read again as %v: %v", s, again, err)
		}
	})
}
