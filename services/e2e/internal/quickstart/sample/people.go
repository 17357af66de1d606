// Package sample makes the file that the quickstart imports: people whose
// names are written in many scripts, and among them one of everything that can
// go wrong on the way to a mailbox. The same seed and number make the same
// bytes, on any machine and for ever.
package sample

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Prefix is where examples/sample expects the file.
const Prefix = "imports/sample/"

// Campaign is the campaign of examples/sample.
const Campaign = "autumn-letter"

const header = "id,name,email,email_consent,country,plan,age,points,signed_up\n"

// MinPeople is the smallest sample that holds every special case.
const MinPeople = 40

// Made says what a sample holds.
type Made struct {
	People  int // with an id and a readable row
	Rows    int // data rows: people, repeated rows and broken ones
	Doubled int // rows that repeat a person
	Broken  int // rows that the import must reject

	NoAddress, Unsubscribed, Nameless, RefusedForGood, RefusedOnce, Unanswered int
}

// special is what is wrong with a person.
type special int

const (
	fine special = iota
	noAddress
	unsubscribed
	nameless       // the template is strict and greets by name
	refusedForGood // the outbox answers 550
	refusedOnce    // the outbox answers 451 the first time
	unanswered     // the outbox takes the mail and hangs up without a word
)

// Write writes the sample as CSV.
func Write(w io.Writer, seed uint64, people int) (Made, error) {
	if people < MinPeople {
		return Made{}, fmt.Errorf("making a sample of %d people: at least %d", people, MinPeople)
	}
	m := Made{People: people}
	out := bufio.NewWriterSize(w, 64<<10)
	random := rand.New(rand.NewPCG(seed, 0x6869_6b79_616b_7520)) // PCG is specified: its numbers never change
	specials := m.deal(people)
	out.WriteString(header)
	var repeat []string // rows to write again further down, as a list that was merged carelessly has them
	for i, kind := range specials {
		row := person(random, i+1, kind)
		out.WriteString(row)
		m.Rows++
		if i%50 == 12 && kind == fine {
			repeat = append(repeat, row)
		}
		if len(repeat) > 0 && i%50 == 35 {
			for _, again := range repeat {
				out.WriteString(again)
				m.Rows++
				m.Doubled++
			}
			repeat = repeat[:0]
		}
		if bad, ok := brokenRows()[i]; ok {
			out.WriteString(bad)
			m.Rows++
			m.Broken++
		}
	}
	return m, out.Flush()
}

// brokenRows are rows that the import rejects, by the index of the person they follow.
func brokenRows() map[int]string {
	return map[int]string{
		8:  ",Somebody Without Number,somebody@example.test,,France,plus,41,120,2021-03-04\n",
		17: "p-17x,Datum Kaputt,datum.kaputt@example.test,,Germany,plus,37,80,31.02.2022\n",
		30: "p-30x,Too Many,too.many@example.test,,Greece,free,29,10,2023-05-06,and,more\n",
	}
}

// deal says what is special about each person. Percentages are of all people;
// there is at least one of each kind.
func (m *Made) deal(people int) []special {
	kinds := make([]special, people)
	share := func(kind special, perMille, atMost int) int {
		n := max(1, people*perMille/1000)
		if atMost > 0 {
			n = min(n, atMost)
		}
		// Spread over the file: each kind begins at an offset of its own and takes the next person who is still fine.
		for i := range n {
			at := (int(kind)*5 + i*people/n) % people
			for kinds[at] != fine {
				at = (at + 1) % people
			}
			kinds[at] = kind
		}
		return n
	}
	m.NoAddress = share(noAddress, 20, 0)
	m.Unsubscribed = share(unsubscribed, 20, 0)
	m.Nameless = share(nameless, 1, 0)
	m.RefusedForGood = share(refusedForGood, 4, 0)
	m.RefusedOnce = share(refusedOnce, 4, 0)
	// Each costs a connection and leaves a message nobody can speak for: a few are enough to see.
	m.Unanswered = share(unanswered, 1, 3)
	return kinds
}

// person writes a row. The same number of random numbers is drawn for everybody, so that one special case changes nobody else.
func person(random *rand.Rand, number int, kind special) string {
	place := &places[pick(random, len(places))]
	given, family := place.given[pick(random, len(place.given))], place.family[pick(random, len(place.family))]
	plan, age := plans[pick(random, len(plans))], 14+pick(random, 66)
	points := pick(random, 60) * pick(random, 60)
	day := time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, pick(random, 7*365))
	if kind != fine { // so that the audience has them, and they can be seen to fail
		plan, age = "gold", max(age, 30)
	}

	name := given.written + " " + family.written
	if place.familyFirst {
		name = family.written + " " + given.written
	}
	local := given.latin + "." + family.latin + "." + strconv.Itoa(number)
	consent := ""
	switch kind {
	case nameless:
		name = ""
	case unsubscribed:
		consent = "unsubscribed"
	case refusedForGood:
		local += "+550"
	case refusedOnce:
		local += "+451"
	case unanswered:
		local += "+hang"
	}
	email := local + "@example.test"
	if kind == noAddress {
		email = ""
	}
	return strings.Join([]string{fmt.Sprintf("p%05d", number), name, email, consent, place.country, plan, strconv.Itoa(age), strconv.Itoa(points), day.Format(time.DateOnly)}, ",") + "\n"
}

func pick(random *rand.Rand, n int) int { return int(random.Uint64N(uint64(n))) }

var plans = []string{"free", "free", "free", "plus", "plus", "plus", "gold", "gold", "staff"}

type name struct{ written, latin string }

type place struct {
	country       string
	familyFirst   bool
	given, family []name
}

var places = []place{
	{"Japan", true,
		[]name{{"花子", "hanako"}, {"太郎", "taro"}, {"さくら", "sakura"}, {"蓮", "ren"}, {"美咲", "misaki"}, {"大輔", "daisuke"}},
		[]name{{"佐藤", "sato"}, {"鈴木", "suzuki"}, {"高橋", "takahashi"}, {"渡辺", "watanabe"}, {"山本", "yamamoto"}}},
	{"Egypt", false,
		[]name{{"فاطمة", "fatima"}, {"محمد", "mohamed"}, {"ليلى", "layla"}, {"يوسف", "youssef"}, {"نور", "nour"}},
		[]name{{"حسن", "hassan"}, {"إبراهيم", "ibrahim"}, {"المصري", "elmasry"}, {"عبد الله", "abdallah"}}},
	{"Ukraine", false,
		[]name{{"Олена", "olena"}, {"Тарас", "taras"}, {"Їванна", "ivanna"}, {"Соломія", "solomiia"}, {"Андрій", "andrii"}},
		[]name{{"Шевченко", "shevchenko"}, {"Коваленко", "kovalenko"}, {"Бондаренко", "bondarenko"}, {"Лук’яненко", "lukianenko"}}},
	{"Greece", false,
		[]name{{"Ελένη", "eleni"}, {"Γιώργος", "giorgos"}, {"Σοφία", "sofia"}, {"Νίκος", "nikos"}},
		[]name{{"Παπαδοπούλου", "papadopoulou"}, {"Αντωνίου", "antoniou"}, {"Οικονόμου", "oikonomou"}}},
	{"India", false,
		[]name{{"प्रिया", "priya"}, {"अर्जुन", "arjun"}, {"काव्या", "kavya"}, {"रोहन", "rohan"}},
		[]name{{"शर्मा", "sharma"}, {"पटेल", "patel"}, {"सिंह", "singh"}, {"गुप्ता", "gupta"}}},
	{"Republic of Korea", true,
		[]name{{"지우", "jiwoo"}, {"민준", "minjun"}, {"서연", "seoyeon"}},
		[]name{{"김", "kim"}, {"이", "lee"}, {"박", "park"}}},
	{"Israel", false,
		[]name{{"נועה", "noa"}, {"דניאל", "daniel"}, {"תמר", "tamar"}},
		[]name{{"כהן", "cohen"}, {"לוי", "levi"}, {"מזרחי", "mizrahi"}}},
	{"Georgia", false,
		[]name{{"ნინო", "nino"}, {"გიორგი", "giorgi"}, {"თამარ", "tamar"}},
		[]name{{"ბერიძე", "beridze"}, {"კაპანაძე", "kapanadze"}}},
	{"Thailand", false,
		[]name{{"สมชาย", "somchai"}, {"มาลี", "malee"}, {"ณัฐ", "nat"}},
		[]name{{"ใจดี", "jaidee"}, {"ศรีสุข", "srisuk"}}},
	{"Ethiopia", false,
		[]name{{"ሰላም", "selam"}, {"አበበ", "abebe"}},
		[]name{{"ተስፋዬ", "tesfaye"}, {"በቀለ", "bekele"}}},
	{"China", true,
		[]name{{"伟", "wei"}, {"秀英", "xiuying"}, {"𠮷", "ji"}}, // the last is outside the basic plane
		[]name{{"王", "wang"}, {"李", "li"}, {"张", "zhang"}}},
	{"France", false,
		[]name{{"Zoé", "zoe"}, {"François", "francois"}, {"Anaïs", "anais"}, {"Jérôme", "jerome"}},
		[]name{{"Lefèvre", "lefevre"}, {"D’Hôtel", "dhotel"}, {"Müller", "muller"}, {"Garçon", "garcon"}}},
	{"Germany", false,
		[]name{{"Jürgen", "juergen"}, {"Käthe", "kaethe"}, {"Sören", "soeren"}},
		[]name{{"Weiß", "weiss"}, {"Größer", "groesser"}, {"Schäfer", "schaefer"}}},
	{"Poland", false,
		[]name{{"Łukasz", "lukasz"}, {"Zofia", "zofia"}, {"Grażyna", "grazyna"}},
		[]name{{"Wójcik", "wojcik"}, {"Dąbrowska", "dabrowska"}, {"Brzęczyszczykiewicz", "brzeczyszczykiewicz"}}},
	{"Viet Nam", true,
		[]name{{"Hương", "huong"}, {"Dũng", "dung"}, {"Mỹ Linh", "mylinh"}},
		[]name{{"Nguyễn", "nguyen"}, {"Trần", "tran"}, {"Đặng", "dang"}}},
	{"Ireland", false,
		[]name{{"Siobhán", "siobhan"}, {"Pádraig", "padraig"}, {"Niamh", "niamh"}},
		[]name{{"O'Brien", "obrien"}, {"Ó Súilleabháin", "osuilleabhain"}, {"Byrne & Sons", "byrne"}}}, // must be escaped in HTML
	{"Brazil", false,
		[]name{{"João", "joao"}, {"Conceição", "conceicao"}, {"Inês", "ines"}},
		[]name{{"Gonçalves", "goncalves"}, {"Simões", "simoes"}, {"da Silva", "dasilva"}}},
}
