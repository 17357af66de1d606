package spool

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// schemas are those that the spool's records were written with, a file each:
// <name>-<fingerprint>.avsc. They stay when the records are drained.
type schemas struct {
	dir string
	mu  sync.RWMutex
	all map[fingerprint]schema
}

type schema struct{ name, text string }

const schemaSuffix = ".avsc"

func (s *schemas) load(dir string) error {
	s.dir, s.all = dir, map[fingerprint]schema{}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		base, ours := strings.CutSuffix(f.Name(), schemaSuffix)
		name, hash, ok := strings.Cut(base, "-")
		if !ours || !ok {
			continue // one that was not written to its end
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		print := fingerprintOf(name, string(text))
		if hex.EncodeToString(print[:]) != hash {
			return fmt.Errorf("the schema %s is damaged: it is not what its name says", filepath.Join(dir, f.Name()))
		}
		s.all[print] = schema{name, string(text)}
	}
	return nil
}

// keep makes a record's schema durable, once.
func (s *schemas) keep(r event.Record) error {
	print := fingerprintFor(r)
	s.mu.RLock()
	_, ok := s.all[print]
	s.mu.RUnlock()
	if ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.all[print]; ok {
		return nil
	}
	name, text := r.SchemaName(), r.Schema()
	if err := replaceFile(filepath.Join(s.dir, name+"-"+hex.EncodeToString(print[:])+schemaSuffix), []byte(text)); err != nil {
		return err
	}
	s.all[print] = schema{name, text}
	return nil
}

// decode makes a record of what lies in the spool, whichever version of its schema it was
// written with.
func (s *schemas) decode(r raw) (event.Record, error) {
	s.mu.RLock()
	written, ok := s.all[r.schema]
	s.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("its schema, %x, is not in %s", r.schema, s.dir)
	}
	rec, ok := event.New(written.name)
	if !ok {
		return nil, fmt.Errorf("this program knows no record %s", written.name)
	}
	// I7: whichever version it was written with.
	return rec, event.DecodeWith(written.text, r.value, rec)
}

// replaceFile writes a file so that, whatever happens, the old one or the new one is there,
// and returns when that is durable.
func replaceFile(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
