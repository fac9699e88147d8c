package operator

import (
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// sound gives a message that can be sent and printed as JSON. What agents say is bounded and checked where it comes in; but one text
// that slipped through, or a time that is none, must not make a listing fail for everybody. The message itself is not changed.
func sound[M proto.Message](m M) M {
	if !mend(m.ProtoReflect(), false) {
		return m
	}
	mended := proto.CloneOf(m)
	mend(mended.ProtoReflect(), true)
	return mended
}

// mend says whether something in a message is wrong: text that is not UTF-8, or a time or duration out of its range. It mends that if
// asked to: wrong bytes are replaced, a wrong time is left out.
func mend(m protoreflect.Message, change bool) (wrong bool) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				fixed, key := value(fd.MapValue(), v, change), k
				if fd.MapKey().Kind() == protoreflect.StringKind && !utf8.ValidString(k.String()) {
					key = protoreflect.ValueOfString(strings.ToValidUTF8(k.String(), "\uFFFD")).MapKey()
				}
				if !fixed.IsValid() && key.String() == k.String() {
					return true
				}
				wrong = true
				if change {
					if !fixed.IsValid() {
						fixed = v
					}
					m.Mutable(fd).Map().Clear(k)
					m.Mutable(fd).Map().Set(key, fixed)
				}
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				if fixed := value(fd, v.List().Get(i), change); fixed.IsValid() {
					wrong = true
					if change {
						v.List().Set(i, fixed)
					}
				}
			}
		default:
			fixed := value(fd, v, change)
			if !fixed.IsValid() {
				return true
			}
			wrong = true
			if change && outOfRange(v, fd) {
				m.Clear(fd)
			} else if change {
				m.Set(fd, fixed)
			}
		}
		return true
	})
	return wrong
}

// value gives what a wrong value of a field is to be; nothing valid when it is right.
func value(fd protoreflect.FieldDescriptor, v protoreflect.Value, change bool) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if !utf8.ValidString(v.String()) {
			return protoreflect.ValueOfString(strings.ToValidUTF8(v.String(), "\uFFFD"))
		}
	case protoreflect.MessageKind:
		if outOfRange(v, fd) {
			return protoreflect.ValueOfMessage(v.Message().New())
		}
		if mend(v.Message(), change) {
			return v
		}
	default:
	}
	return protoreflect.Value{}
}

func outOfRange(v protoreflect.Value, fd protoreflect.FieldDescriptor) bool {
	if fd.Kind() != protoreflect.MessageKind {
		return false
	}
	switch x := v.Message().Interface().(type) {
	case *timestamppb.Timestamp:
		return !x.IsValid()
	case *durationpb.Duration:
		return !x.IsValid()
	}
	return false
}
