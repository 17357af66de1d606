package pinpoint

import (
	"strings"
	"unicode"
)

// kind is what is made of a value.
type kind int

const (
	kindNone kind = iota // nothing
	kindUserID
	kindEndpointID
	kindChannel
	kindAddress
	kindOptOut
	kindStatus
	kindLocale
	kindTimeZone
	texts // how many of the kinds above are one text for each row

	kindAttribute
	kindNumber // an attribute, too
)

// field is a name in a file and its meaning.
type field struct {
	name      string
	kind      kind
	attribute string // its name
	rank      int    // of two attributes of one name the lower rank has it, the other keeps its name in the file
}

// Names that are used in more than one place.
const (
	userID      = "User.UserId"
	endpointID  = "Id"
	address     = "Address"
	channelType = "ChannelType"
	optOut      = "OptOut"
	status      = "EndpointStatus"
)

// meaning is what a name means, whatever the format.
func meaning(name string) field {
	f := field{name: name}
	switch name {
	case userID:
		f.kind = kindUserID
	case endpointID:
		f.kind = kindEndpointID
	case channelType:
		f.kind = kindChannel
	case address:
		f.kind = kindAddress
	case optOut:
		f.kind = kindOptOut
	case status:
		f.kind = kindStatus
	case "Demographic.Locale":
		f.kind = kindLocale
	case "Demographic.Timezone":
		f.kind = kindTimeZone
	case "ApplicationId", "CohortId", "CreationDate", "EffectiveDate", "RequestId":
	case "Location.Latitude", "Location.Longitude":
		f.kind, f.attribute, f.rank = kindNumber, snake(name), 3
	default:
		f.kind = kindAttribute
		for rank, prefix := range []string{"User.UserAttributes.", "Attributes.", "Metrics."} {
			if rest, ok := strings.CutPrefix(name, prefix); ok {
				if prefix == "Metrics." {
					f.kind = kindNumber
				}
				f.attribute, f.rank = rest, rank
				return f
			}
		}
		f.attribute, f.rank = snake(name), 3
		if !strings.HasPrefix(name, "Location.") && !strings.HasPrefix(name, "Demographic.") {
			f.attribute = "pinpoint_" + f.attribute // nobody knows what it is
		}
	}
	return f
}

// snake writes Location.PostalCode as location_postal_code.
func snake(name string) string {
	var b strings.Builder
	before := '_'
	for _, r := range name {
		switch {
		case r == '.' || unicode.IsSpace(r):
			r = '_'
		case unicode.IsUpper(r) && !unicode.IsUpper(before) && before != '_':
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
		before = r
	}
	return b.String()
}
