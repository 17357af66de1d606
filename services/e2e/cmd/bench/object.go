package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// rowsOf makes the rows of a format, all of one width, so that any byte of a file of
// any size follows from its position: it takes neither disk nor memory.
type rowsOf struct {
	header string
	row    string // with blanks for what differs
	number int    // where its nine digits stand
	city   int    // where five letters stand
	points int    // where five digits stand
}

// contents are files of any number of rows.
type contents interface {
	object(rows int64) (*io.SectionReader, error)
	describe() string
}

var cities = []string{"Tokyo", "Osaka", "Kyoto", "Paris", "Milan", "Delhi", "Dubai", "Lagos"}

// rowsIn are the rows of a format, at least so many bytes long: the text of one column is
// as long as that takes.
func rowsIn(format string, width int) (rowsOf, error) {
	var r rowsOf
	switch format {
	case "csv":
		r.header = "id,city,plan,points,likes,since,language,visits,news\n"
		r.row = "user-#########,@@@@@,gold,%%%%%,Chocolate,2025-01-02,en-GB,9,yes\n"
	case "jsonl":
		r.row = `{"id":"user-#########","city":"@@@@@","plan":"gold","points":%%%%%,"likes":"Chocolate","since":"2025-01-02","language":"en-GB","visits":9,"news":true}` + "\n"
	default:
		return r, fmt.Errorf("no rows of format %q: csv, jsonl, avro or parquet", format)
	}
	if short := width - len(r.row); short > 0 {
		r.row = strings.Replace(r.row, "Chocolate", "Chocolate"+strings.Repeat(" and more", short/9+1)[:short], 1)
	}
	r.number, r.city, r.points = strings.Index(r.row, "#"), strings.Index(r.row, "@"), strings.Index(r.row, "%")
	return r, nil
}

// object is the file of so many rows.
func (r rowsOf) object(rows int64) (*io.SectionReader, error) {
	return io.NewSectionReader(textOf{r}, 0, int64(len(r.header))+rows*int64(len(r.row))), nil
}

func (r rowsOf) describe() string { return fmt.Sprintf("rows of %d bytes", len(r.row)) }

// append adds row i, from 0, to p.
func (r rowsOf) append(p []byte, i int64) []byte {
	from := len(p)
	p = append(p, r.row...)
	row := p[from:]
	digits(row[r.number:r.number+9], i)
	copy(row[r.city:], cityOf(i))
	digits(row[r.points:r.points+5], pointsOf(i))
	return p
}

func cityOf(row int64) string { return cities[row%int64(len(cities))] }

// pointsOf has five digits: JSON numbers do not begin with 0.
func pointsOf(row int64) int64 { return 10_000 + row*7919%90_000 }

func digits(p []byte, n int64) {
	for k := len(p) - 1; k >= 0; k-- {
		p[k] = byte('0' + n%10)
		n /= 10
	}
}

const (
	benchBucket = "hikyaku"
	objectETag  = `"made-from-row-numbers"`
)

// textOf is the text of rows without end.
type textOf struct{ rowsOf }

// ReadAt makes the bytes from an offset on.
func (t textOf) ReadAt(p []byte, from int64) (int, error) {
	n := 0
	head := int64(len(t.header))
	if from < head {
		n = copy(p, t.header[from:])
	}
	width := int64(len(t.row))
	var made []byte
	for row := (from + int64(n) - head) / width; n < len(p); row++ {
		made = t.append(made[:0], row)
		n += copy(p[n:], made[from+int64(n)-head-row*width:])
	}
	return n, nil
}

// objects is an S3 server of objects made of rows, each called after the number of
// its rows, such as imports/1/2000000.csv. It knows lists, heads and ranges, and takes what is
// put into it without keeping it.
type objects struct {
	modified time.Time
	of       contents
	keys     func() []string  // what a list shows
	asked    func(key string) // is called when a range of it is asked for
}

func (o *objects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/"+benchBucket)
	key := strings.TrimPrefix(path, "/")
	switch {
	case r.Method == http.MethodPut:
		w.Header().Set("ETag", objectETag)
	case r.Method == http.MethodGet && key == "":
		o.list(w, r.URL.Query().Get("prefix"))
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		o.object(w, r, key)
	default:
		w.WriteHeader(http.StatusNotImplemented)
	}
}

func (o *objects) list(w http.ResponseWriter, prefix string) {
	type entry struct {
		Key, ETag, LastModified string
		Size                    int64
	}
	answer := struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		Name        string
		IsTruncated bool
		Contents    []entry
	}{Name: benchBucket}
	for _, key := range o.keys() {
		if strings.HasPrefix(key, prefix) {
			content, err := o.of.object(rowsNamed(key))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			answer.Contents = append(answer.Contents, entry{key, objectETag, o.modified.UTC().Format("2006-01-02T15:04:05.000Z"), content.Size()})
		}
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(answer)
}

// rowsNamed is how many rows the object has, by its name.
func rowsNamed(key string) int64 {
	name := key[strings.LastIndexByte(key, '/')+1:]
	n, _ := strconv.ParseInt(name[:strings.IndexByte(name, '.')], 10, 64)
	return n
}

func (o *objects) object(w http.ResponseWriter, r *http.Request, key string) {
	content, err := o.of.object(rowsNamed(key))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if r.Method == http.MethodGet {
		o.asked(key)
	}
	w.Header().Set("ETag", objectETag)
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", o.modified, content)
}
