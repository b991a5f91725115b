#include "words.h"

#include <ctype.h>

enum { LONGEST = 127 };

void count_words(struct table *table, FILE *text)
{
    char word[LONGEST + 1];
    size_t length = 0;
    int next;
    do {
        next = getc(text);
        if (next != EOF && (isalpha(next) || (next == '\'' && length > 0))) {
            if (length < LONGEST)
                word[length++] = (char)tolower(next);
            continue;
        }
        while (length > 0 && word[length - 1] == '\'')
            length--;
        word[length] = '\0';
        if (length > 0)
            table_add(table, word);
        length = 0;
    } while (next != EOF);
}
