#ifndef TALLY_WORDS_H
#define TALLY_WORDS_H

#include <stdio.h>

#include "table.h"

/* Add every word of the text, in lower case: runs of letters, and apostrophes inside of them. */
void count_words(struct table *table, FILE *text);

#endif
