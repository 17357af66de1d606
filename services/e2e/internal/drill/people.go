package drill

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

const campaignID = "drill"

// definitions are those of the drill; the policy is filled in.
const definitionsYAML = `kind: ImportSpec
id: people
source: {prefix: %[1]s, format: csv}
user_id: {column: id}
profile:
  addresses: {email: {column: email}}
  consents: {email: {column: consent}}
  attributes: {name: {column: name}, age: {column: age, type: int}, points: {column: points, type: int}}
---
kind: Audience
id: adults
filter:
  attribute: {name: age, gte: 18}
---
kind: Template
id: relay
channel: email
subject: "{{ name }}, the relay has come through"
html: <html><body><p>Hello {{ name }}, you have {{ points }} points.</p><p><a href="https://shop.example.test/relay">Spend them</a></p></body></html>
text: "Hello {{ name }}, you have {{ points }} points: https://shop.example.test/relay"
strict: true
---
kind: Campaign
id: drill
audience: adults
template: relay
from: {name: Hikyaku, address: hello@example.test}
policy: %[2]s
`

const header = "id,email,consent,name,age,points\n"

// population is the list, and what is known of it in advance.
type population struct {
	Rows     int
	Audience map[string]bool // user ids
	Mailable int             // of the audience: with an address, a name, and not unsubscribed
}

func userID(i int) string { return fmt.Sprintf("u%06d", i) }

// writePeople writes the list: the same bytes for the same seed. Of a thousand
// people 20 have no address, 20 are unsubscribed, 5 have no name (the template is
// strict), 4 are refused by the outbox for good and 4 once; 100 are not of age.
func writePeople(w io.Writer, seed uint64, n int) (*population, error) {
	random := rand.New(rand.NewPCG(seed, 0x7065_6f70_6c65))
	out := bufio.NewWriter(w)
	fmt.Fprint(out, header)
	p := &population{Rows: n, Audience: make(map[string]bool, n)}
	for i := range n {
		id, lot := userID(i), random.IntN(1000)
		email, consent, name, age := id+"@example.test", "", fmt.Sprintf("Person %d", i), 18+random.IntN(60)
		mailable := true
		switch {
		case lot < 20:
			email, mailable = "", false
		case lot < 40:
			consent, mailable = "unsubscribed", false
		case lot < 45:
			name, mailable = "", false
		case lot < 49:
			email = id + "+550@example.test"
		case lot < 53:
			email = id + "+451@example.test"
		case lot < 153:
			age = 17
		}
		if age >= 18 {
			p.Audience[id] = true
			if mailable {
				p.Mailable++
			}
		}
		fmt.Fprintf(out, "%s,%s,%s,%s,%d,%d\n", id, email, consent, name, age, random.IntN(1000))
	}
	return p, out.Flush()
}

// writeJoiners writes a short list of people who were not in the first one.
func writeJoiners(w io.Writer, file, n int) error {
	out := bufio.NewWriter(w)
	fmt.Fprint(out, header)
	for i := range n {
		id := joinerID(file, i)
		fmt.Fprintf(out, "%s,%s@example.test,,Joiner %d,30,1\n", id, id, i)
	}
	return out.Flush()
}

func joinerID(file, i int) string { return fmt.Sprintf("f%02d-%05d", file, i) }

// personOf is the user id that an address of the drill belongs to.
func personOf(address string) string {
	local, _, _ := strings.Cut(strings.ToLower(strings.Trim(address, "<>")), "@")
	id, _, _ := strings.Cut(local, "+")
	return id
}
