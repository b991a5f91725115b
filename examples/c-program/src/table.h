#ifndef TALLY_TABLE_H
#define TALLY_TABLE_H

#include <stddef.h>

/* How often each word was met: a hash table that grows and never forgets. */
struct table;

struct entry {
    const char *word;
    size_t count;
};

struct table *table_new(void);
void table_free(struct table *table);

/* Count the word once more; its text is copied. */
void table_add(struct table *table, const char *word);

size_t table_size(const struct table *table);
size_t table_count(const struct table *table, const char *word);

/* The entries, the most frequent first, words of one count in order. The caller frees the array;
   the words in it live as long as the table. */
struct entry *table_ranked(const struct table *table);

#endif
