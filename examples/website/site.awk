# Makes a page of each text it is given, NAME.html of NAME.md: "# " and "## " begin headings, "- " list
# items, [words](place) is a link, and empty lines part paragraphs.

function linked(text) {
    while (match(text, /\[[^]]*\]\([^)]*\)/)) {
        split(substr(text, RSTART + 1, RLENGTH - 2), part, /\]\(/)
        text = substr(text, 1, RSTART - 1) "<a href=\"" part[2] "\">" part[1] "</a>" \
            substr(text, RSTART + RLENGTH)
    }
    return text
}

# Ends the element that is open, unless it is `tag`, and begins that.
function element(tag) {
    if (current == tag) return
    if (current) print "</" current ">" > page
    if (tag) print "<" tag ">" > page
    current = tag
}

FNR == 1 {
    element("")
    page = FILENAME
    sub(/md$/, "html", page)
    print "<!doctype html>\n<meta charset=\"utf-8\">\n<link rel=\"stylesheet\" href=\"style.css\">" > page
}
/^## / { element(""); print "<h2>" linked(substr($0, 4)) "</h2>" > page; next }
/^# / { element(""); print "<h1>" linked(substr($0, 3)) "</h1>" > page; next }
/^- / { element("ul"); print "<li>" linked(substr($0, 3)) "</li>" > page; next }
/^$/ { element(""); next }
{ element("p"); print linked($0) > page }
END { element("") }
