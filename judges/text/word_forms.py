"""Tells function words from others, and compares words by their stems.

A function word ("the", "said", "не") is never a key, and says nothing as context. The lists of several languages are
one set, so no language has to be known: a function word of one language is seldom an important word of another.
Languages without a list get worse questions, not fewer.
"""

import regex

_WORDS = """
a about above according across after again against ago all almost already also although always am among an and another
any anyone anything are aren't around as at away back be became because become been before began begin being below
between both but by called came can can't cannot come could couldn't day days despite did didn't do does doesn't doing
don't done down due during each either else enough even ever every everyone everything far few first following for
former from full further gave get gets getting give given go goes going gone got great had hadn't has hasn't have
haven't having he he'd he'll he's her here hers herself him himself his how however i i'd i'll i'm i've if in
including indeed instead into is isn't it it's its itself just keep kept know known last later least less let like
likely made mainly make makes making many may maybe me meanwhile might mine more moreover most much must my myself
near nearly need neither never new next no nobody none nor not nothing now of off often on once one ones only onto or
other others our ours out over own part per perhaps put quite rather really same saw say saying says see seem seemed
seems seen several shall she she's should shouldn't since so some someone something soon still such take taken takes
tell tells than that that's the their theirs them themselves then there there's therefore these they they'd they'll
they're they've thing things this those though three through thus to today together told too took toward towards two
under until up upon us use used using very via want wanted wants was wasn't way we we'd we'll we're we've well went
were weren't what what's when where whether which while who who's whole whom whose why will with within without won't
would wouldn't year years yes yesterday yet you you'd you'll you're you've your yours yourself said added asked week
weeks month months time times four five
ab aber alle allem allen aller alles als also am an ander andere anderen auch auf aus außerdem bei beide beim bereits
bin bis bisher bislang da dabei dadurch dafür dagegen daher damals damit danach daran darauf darüber das dass dazu dem
den denn der deren des deshalb dessen die dies diese diesem diesen dieser dieses doch dort du durch ein eine einem
einen einer eines einige einmal er erst es etwa etwas für gab geben gegen gegenüber gehen gibt habe haben hat hatte
hatten hier hinter ich ihm ihn ihnen ihr ihre ihrem ihren ihrer im immer in indem ins ist ja jede jeden jeder jedes
jedoch jetzt kam kann kein keine keinen können könnte könnten laut man mehr mehrere mein mich mit muss müssen musste
mussten nach nachdem neben nicht nichts noch nun nur ob oder ohne rund schon sehr sei sein seine seinem seinen seiner
seit seitdem selbst sich sie sind so sogar soll sollen sollte sollten sondern sowie statt über um und uns unter viel
viele vom von vor wann war waren warum was wegen weil weiter welche wenn wer werde werden wie wieder will wir wird wo
wollen worden wurde wurden während zu zudem zum zur zwar zwei zwischen sagte sagt teilte mitteilte allerdings dennoch
alors après au aucun aujourd'hui aussi autre autres aux avait avant avec avoir beaucoup bien car ce ceci cela celle
celui ces cet cette ceux chez chaque comme comment contre d dans de depuis derrière des dit donc dont du elle elles en
encore entre est et était étaient été être eu fait faire il ils jamais je jusqu l la le les leur leurs lors lorsque
lui ma mais me même mes moins mon ne ni non nos notre nous on ont ou où par parce pas pendant peu peut plus pour
pourquoi puis qu quand que quel quelle qui sa sans se selon ses si son sont sous sur ta tandis tous tout toute toutes
très trop un une vers votre vous y ainsi
al algo algunas algunos ante antes así aún aunque cada como con contra cual cuando de del desde después dijo donde dos
durante e el ella ellas ellos en entre era eran es esa ese eso esta está están estaba este esto estos fue fueron ha
había han hasta hay la las le les lo los más me mi mientras mucho muy ni no nos o otra otro otros para pero poco por
porque puede pues que quien se según ser si sí sido sin sobre son su sus también tan tanto te tiene tienen todo todos
tras tu un una unas uno unos y ya yo
ai al alla alle anche ancora avere aveva c che chi ci come con contro così cui da dal dalla dalle dei del della delle
dello di dopo dove due e è era erano essere fa fino fra già gli ha hanno ho i il in io la le lei lo loro lui ma mentre
mi molto nel nella nelle non nostro o ogni per perché più può prima quale quando quanto quella quello questa questo se
secondo senza si sia solo sono sopra sta stato su sua sue sugli sul sulla sulle suo suoi tra tutti tutto un una uno
ao aos após as até com como da das de dela dele deles depois do dos e é ela elas ele eles em enquanto entre era essa
esse esta está este eu foi foram há isso isto já lhe mais mas me mesmo muito na nas não nem no nos nós o os ou para
pela pelas pelo pelos por porque quando que quem são se segundo sem ser seu seus sobre sua suas também tem têm um uma
umas uns
aan als ander andere bij dan dat de deze die dit door een en er geen haar had heb hebben heeft het hij hoe hun ik in
is kan maar meer men met mijn na naar niet nog nu of om omdat ons ook op over sinds te tegen ten terwijl toch toen tot
uit van veel volgens voor waar waren was wat we wel werd werden wie wij wordt worden zal ze zich zij zijn zo zonder
zou
a aby ale aż bardzo bez bo by być był była było były ci co czy dla do gdy gdzie go i ich im innych iż ja jak jako je
jego jej jest już kiedy która które którego której który których którzy lub ma mają może na nad nie niż o od oraz po
pod podczas ponieważ poza przed przez przy również są się swoje swoich ta tak także tam te tego tej też ten to tu tych
tylko tym u w we według więc wszystko z za że żeby
och att det som en på är av för med den till inte om ett han men var jag sig från vi så kan när år de under också
efter eller nu där bara mycket än detta skulle hade har ska blir mot sin sina enligt at ikke af og til er fra hun
ve bir bu da de için ile daha çok en olarak olan gibi kadar sonra göre ise ancak ama o ne ya her değil oldu olduğu
dedi
а без более бы был была были было быть в вам вас весь во вот все всего всех вы где да даже для до его ее её если есть
ещё еще ж же за здесь и из или им их к как какой когда который которая которое которые которого которой которых
которым кто ли либо между меня мне много может можно мой мы на над надо наш не него нее неё нет ни них но ну о об один
одна однако около он она они оно от отметил очень перед по под после потом потому при про раз рассказал рассказала с
сам самый свой свою себе себя сейчас со сообщил сообщила сказал сказала заявил заявила словам также так такой там те
тем теперь то тогда того тоже той только том тот три ту тут ты у уже хотя чего чей чем через что чтобы эта эти это
этого этой этом этот эту я своей своего своих этим этих будет будут лет года году год
і й та що як на не до це за від у в з із зі про для або але які який яка яке його її їх був була було були буде
του της το τα των την τον και να με για στο στη στην στις στους από που είναι δεν θα ο η οι ένα μια ως κατά μετά σε
في من على إلى الى عن مع أن ان إن أنه انه أنها هذا هذه ذلك تلك التي الذي الذين كان كانت يكون تكون قد لقد لا ما لم لن هو
هي هم كل بعض بعد قبل بين حتى عند عندما منذ خلال حول أو او ثم بل لكن كما أي غير أكثر اكثر أقل نحو وقال وقالت قال قالت
وأضاف أضاف وأضافت وذكر وذكرت ذكرت ذكر يوم وفي ومن وعلى وإلى وأن وإن وكان وكانت بينما بينهم أيضا إذا لدى ضد دون تم
और का की के को में से है हैं था थी थे हो होगा होगी होंगे पर ने कि यह यहाँ वह वे इस इसे इसके इसकी इन उस उसे उसके उसकी
उन उन्हें उनके जो जिस जिसमें जिनमें जिनके तो भी ही तक अब जब तब अगर लेकिन या एक दो तीन कर करना करने करता करते किया किए
गया गई गए जा जाता जाती जाएगा जाएगी रहा रही रहे हुआ हुई हुए लिए साथ बाद पहले अपने अपनी अपना कुछ कोई सब सभी बहुत केवल
नहीं न कहा बताया कहना अनुसार हालाँकि दिया दी लगे लगाए मिली मिला मिलेगी वर्ष साल हर
"""

FUNCTION_WORDS = frozenset(_WORDS.split())

# Characters of grammar in scripts without spaces. A term neither begins nor ends with one.
FUNCTION_CHARACTERS = frozenset(
    "的了在是和与及对于从为以将被把也都而但其该这那有就不到说很更最并或之所等着过给让向由使得地还又再已曾会能可要只每各些个"
    "我你他她它们您谁什么怎哪啊吧呢吗后前上下里中年月日时内外间约近共达至起"
    "のはがをにでともへやかなよねらりるれたてだすいうしさせくけこそあつまみめむえおきち"
)

# Scripts without spaces. `normalized_tokens` makes each of their letters a token, except katakana.
DENSE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_DENSE_LETTER = regex.compile(r"[\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_ARABIC_ARTICLE = regex.compile(r"^(?:[وفبك]?ال|لل)(?=...)")
_HANGUL = regex.compile(r"\p{Hangul}+")
_STEM, _HANGUL_STEM = 5, 2  # letters; a Hangul letter is a syllable, and particles follow the word without a space


def is_function_word(token: str) -> bool:
    """Return whether a normalized token says nothing of its own."""
    return token in FUNCTION_WORDS or token in FUNCTION_CHARACTERS


def is_dense(token: str) -> bool:
    """Return whether a token is a letter of a script without spaces."""
    return bool(_DENSE_LETTER.match(token))


def stem(token: str) -> str:
    """Return what the inflected forms of a word share, nearly: the first 5 letters, without the Arabic article.

    >>> stem("workers"), stem("working"), stem("cars"), stem("640")
    ('worke', 'worki', 'car', '640')
    """
    if not token.isalpha():
        return token
    if _HANGUL.fullmatch(token):
        return token[:_HANGUL_STEM]
    token = _ARABIC_ARTICLE.sub("", token)
    return token[:_STEM] if len(token) > _STEM else token.removesuffix("s") or token


def is_inflected(a: str, b: str) -> bool:
    """Return whether two words may be forms of one: both are long, and only their last 3 letters or fewer differ."""
    shortest, longest = sorted((len(a), len(b)))
    if not (a.isalpha() and b.isalpha()):
        return False
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), shortest)
    if _HANGUL.fullmatch(a) and _HANGUL.fullmatch(b):
        return common >= max(_HANGUL_STEM, longest - 2)
    return shortest >= _STEM and common >= max(4, longest - 3)
