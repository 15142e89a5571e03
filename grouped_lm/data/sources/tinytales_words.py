"""The word lists, cast, rules and plots of TinyTales; `tinytales` says how they are read.

Lists are split at spaces ("_" stands for a space inside an entry). Rules and beats hold one alternative per
"- ". In a template [a|b] chooses, <name> draws from a list or rule, {name} is a slot that remembers, "a~"
          puts
"a" or "an" before what follows, and "^" makes it start with a capital letter. Lists are long and fixed
          phrases
few on purpose: that keeps the entropy per token above what a small model could learn by heart.
"""

VOWEL_SOUND = ("hour", "honest")
CONSONANT_SOUND = ("use", "uni", "one")
IRREGULAR_PLURALS = {
    "mouse": "mice", "dormouse": "dormice", "goose": "geese", "deer": "deer", "calf": "calves", "sheep":
          "sheep",
    "leaf": "leaves", "potato": "potatoes", "wolf": "wolves", "turkey": "turkeys",
    "buffalo": "buffalo", "squid": "squid", "salmon": "salmon", "trout": "trout", "ox": "oxen", "tooth":
          "teeth",
    "radio": "radios", "knife": "knives", "loaf": "loaves", "scarf": "scarves", "fish": "fish", "shelf":
          "shelves",
}  # fmt: skip
WITH_PLURAL = ("animal", "household", "food", "pastry")

LISTS = {
    # --- things
    "toy": """
        kite drum ball whistle marble doll puppet wagon rattle trumpet flute bell lantern ribbon
        mitten hat cap umbrella basket necklace bracelet ring locket key compass seashell paintbrush
        notebook clock medal badge blanket slipper boot glove harmonica magnet coin scarf fiddle
        crown cape music_box teddy_bear toy_boat pocket_watch snow_globe spinning_top button mask
        hoop skipping_rope paper_fan wand backpack helmet telescope sled scooter
        """,
    "household": """
        kettle bucket broom brush ladle candle jar jug pan pot plate bowl fork spoon cup saucer tray
        box crate barrel chair stool cushion pillow rug curtain mirror hammer spade rake shovel
        ladder rope hook nail peg sponge towel apron sock shirt belt purse wallet envelope pencil
        ruler bottle funnel whisk mop comb bead feather wheel horn fan lamp drawer coat shoe sack
        cage cradle dish stamp map flag book paper pen needle thread carpet bag pouch suitcase
        painting letter package ticket trophy torch mug glass straw piano guitar violin cane pin
        pearl shell seed nut egg
        """,
    "thing_adj": """
        small shiny old new tiny round bright smooth striped spotted painted dusty rusty little
        heavy light soft plain pretty faded polished patched wonderful funny strange lovely sturdy
        chipped worn tidy neat battered glossy dented sparkling glittering odd fancy simple special
        precious crooked homemade square flat hollow thick thin narrow wide splendid ordinary
        peculiar floppy creaky clean elegant enormous gigantic miniature rare unusual long short
        large huge big tall pale bent broken dry empty royal ancient antique modern perfect delicate
        fragile warm folded rolled woven carved engraved decorated loose tight sweet magical secret
        mysterious magnificent beautiful charming cute useful valuable forgotten favorite
        twisted curved oval pointed stuffed vivid colorful glowing blinking noisy silent scratched
        cracked bruised fuzzy hairy furry shining musical spinning
        """,
    "color": """
        red blue green yellow purple orange pink white brown gray black violet crimson amber golden
        silver navy tan
        """,
    "material": """
        glass copper clay paper straw leather velvet wool iron cotton felt brass marble bamboo
        cardboard silk oak pine ivory pearl steel bronze wax cloth stone lace crystal tin
        """,
    "num": "two three four five six seven eight nine ten eleven twelve thirteen twenty",
    # --- living things
    "animal": """
        squirrel hedgehog rabbit mouse fox badger otter mole beaver deer owl robin sparrow duck
        goose swan heron crow magpie pigeon turtle tortoise frog toad newt lizard snail beetle
        cricket butterfly bee moth caterpillar spider ant worm goat lamb calf pony donkey piglet
        kitten puppy hen chick rooster bat raccoon raven dove chicken bear wolf cat dog pig cow
        horse sheep bird crab whale seal eagle hawk elephant lion tiger monkey dolphin dragon
        unicorn ox
        """,
    "beast": """
        squirrel hedgehog rabbit fox_cub badger otter mole beaver fawn owl robin sparrow duckling
        heron crow magpie wren finch lark turtle tortoise toad newt lizard lamb calf donkey piglet
        kitten chick raccoon skunk dormouse hare raven dove parrot pelican puffin
        """,
    "animal_adj": """
        shy plump clever friendly sleepy hungry gentle fluffy grumpy cheerful quick proud brave
        lonely timid playful polite lazy silly muddy noisy quiet bold wise jolly merry restless
        skinny patient elderly yawning dancing snoring singing puzzled thirsty tame wild spotted
        striped fuzzy stubborn graceful clumsy solemn young old small large tiny giant busy calm
        careful curious eager famous fast fierce funny furry grand happy kind lucky mighty modest
        nervous pretty sleeping slow smart strange strong sweet tired tough wet lovely fancy honest
        loyal rich smiling swift tall trembling wandering worried bored brilliant cute dusty foolish
        gloomy loud lively messy mysterious naughty peaceful pleasant reckless sneaky tidy daring
        fearless elegant scared bearded masked crying laughing running jumping swimming generous
        cautious hopeful noble excited flying frightened grateful magical shiny whispering
        """,
    "trait": """
        shy clever friendly sleepy gentle cheerful quick proud brave playful polite lazy silly quiet bold
          wise merry
        patient tame wild stubborn graceful clumsy solemn young old small busy calm careful curious eager
          fierce funny
        happy kind lucky mighty modest nimble slow smart strong sweet tough noisy lively loyal messy cautious
          hopeful
        cute grand peaceful pleasant restless
        """,
    "beast_adj": """
        young small plump fluffy furry fuzzy spotted striped muddy shy tiny quiet timid skinny dusty elderly
          clumsy
        cute wild fancy messy bearded shaggy red brown gray black white golden silver orange yellow purple
          speckled
        """,
    "flower": """
        daisies tulips roses poppies violets lilies sunflowers berries herbs weeds mushrooms flowers
        leaves vines bulbs seeds
        """,
    "vegetable": """
        carrots peas beans turnips potatoes onions radishes pumpkins tomatoes peppers melons
        strawberries herbs mushrooms grapes apples berries nuts peanuts almonds
        """,
    "tree": """
        oak ash willow birch maple pine cherry apple pear plum chestnut walnut beech fir fig palm
        lemon olive orange peach nut mango bamboo
        """,
    # --- places and weather
    "place": """
        meadow orchard garden pond river hill beach forest barn mill market bridge stream lane farm
        harbor library bakery schoolhouse valley cave cliff dock square park well tower gate
        windmill stable greenhouse lighthouse playground lake swamp cottage courtyard waterfall
        field chapel ferry fountain village_green village town station school castle palace cabin
        church shop museum theater desert mountain shore island yard lawn inn fair circus marsh
        canyon
        """,
    "place_adj": """
        quiet sunny windy shady busy old green misty muddy leafy grassy mossy steep lonely little
        narrow noisy crowded sleepy rocky sandy hidden empty foggy frosty wild cool damp gloomy
        silent winding bright calm cold dark dry wet dusty deep high low long small tiny pretty
        lovely charming beautiful strange odd curious mysterious magical secret ancient forgotten
        crooked bare snowy icy friendly pleasant neat white frozen gray
        """,
    "landmark": """
        log stump rock fence gate bush hedge wall bench ladder haystack barrel cart boat ditch step
        tent scarecrow signpost boulder statue hammock nest hollow_tree pathway tree tower wagon
        cabin shed hut cave pond lake stream hole hill mound path arch pillar post pole flag swing
        slide tunnel garden lawn web stall fountain temple barn bridge wheel
        """,
    "weather": """
        sunny rainy windy cloudy foggy frosty snowy chilly warm hot cool breezy stormy misty bright
        gray golden still crisp mild damp clear blue pleasant dark wet dry lovely wild quiet
        peaceful sleepy lazy ordinary nice fine
        """,
    "daypart": "morning afternoon evening day",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": """
        January February March April May June July August September October November December spring
        summer autumn winter
        """,
    "smell": """
        mint hay rain bread honey pine grass smoke salt soap apples cinnamon ginger mud roses toast
        pepper onions moss leaves chocolate vanilla butter soup pancakes straw candles jam wood
        leather wax coffee tea sugar cream flowers lemon orange peach berries paint ink paper wool
        cake cookies corn dust herbs fruit nuts spices stew water chalk
        """,
    # --- food
    "pastry": """
        pie cake bun tart muffin cookie pancake waffle biscuit roll pudding loaf sandwich cupcake pastry
          turnover
        """,
    "food": """
        sandwich apple pear plum peach banana orange cherry fig carrot walnut candy_cane noodle
        sausage egg pizza taco mango lemon grape peanut almond melon radish berry
        """,
    "food_adj": """
        warm sweet crunchy sticky crisp juicy buttery salty spicy creamy crumbly fresh hot tasty
        delicious fluffy golden ripe cheesy mild rich baked roasted frozen tender thin soft round
        tiny big small red yellow white homemade cool moist smooth
        """,
    "drink": "milk cocoa lemonade tea cider water broth punch juice coffee honey cream syrup mint_tea",
    "filling": """
        blueberry apple cherry plum lemon raspberry pumpkin honey walnut peach ginger almond coconut
        banana blackberry pear cinnamon chocolate grape fig butter strawberry
        """,
    # --- doing
    "went": """
        walked ran skipped hopped hurried marched strolled wandered trotted raced dashed rushed
        drifted climbed sped crept flew stepped danced jumped rolled sailed crawled
        """,
    "said": """
        said cried whispered called replied answered shouted sang sighed murmured announced declared
        muttered exclaimed insisted         """,
    "adv": """
        softly kindly gently loudly quietly happily gladly proudly shyly bravely slowly quickly
        calmly warmly politely sweetly eagerly hopefully merrily cheerfully patiently carefully
        wisely brightly boldly curiously smoothly swiftly lightly freely neatly plainly steadily
        faithfully peacefully briefly nicely perfectly silently clearly wildly mildly sincerely
        """,
    "good": """
        happy glad proud cheerful merry thankful joyful delighted pleased brave calm cozy peaceful
        hopeful content relieved excited grateful ready comfortable thrilled lively cheery safe
        """,
    "bad": """
        sad worried upset cross lonely gloomy miserable nervous tired unhappy
        frightened grumpy puzzled anxious glum hopeless disappointed embarrassed helpless
        shaky sick angry scared afraid bored cold hurt confused lost weary uneasy alone shocked
        stunned annoyed alarmed exhausted
        """,
    "kid_adj": """
        cheerful curious brave shy clever gentle busy lively thoughtful stubborn dreamy kind careful
        noisy quiet helpful honest polite patient small tall sleepy bright happy cautious funny
        friendly eager proud playful lucky young calm smart sweet merry serious charming generous
        hungry loyal modest neat quick silly strong tidy wild wise
        """,
    "noise": """
        Plip Plop Bang Crash Thump Whoosh Splash Boom Pop Snap Buzz Ding Swish Click Tap Rumble
        Clink Ping Zip Crack Smash Hum Knock Bam Bash Zoom
        """,
    "wow": "Goodness Oh My Look Well Listen Hush Wait Gosh Ah Hey",
    "hobby": """
        painting singing fishing dancing sewing knitting skating swimming rowing juggling reading
        drawing climbing baking digging whistling gardening marching cooking hiking running jumping
        camping writing sailing cycling racing diving weaving planting spelling counting walking
        building collecting
        """,
    "skill": """
        juggle whistle skate swim row knit sew dance paint climb dive sail cartwheel hum drum
        whittle weave paddle draw
        """,
    "ingredient": """
        flour sugar butter eggs milk honey oats nuts salt cream cocoa vanilla yeast cinnamon ginger
        cloves berries almonds syrup water apples lemon chocolate bananas pumpkin mint pepper herbs
        coconut peanuts seeds jam jelly wheat vinegar spices
        """,
    "glue": """
        glue string tape wire thread wax ribbon paste twine nails staples pins putty screws rubber
        yarn
        """,
    "part": """
        handle lid strap side bottom corner top edge middle hinge latch knob back front rim clasp
        seam
        """,
    "room": """
        kitchen attic cellar bedroom pantry parlor hallway workshop porch shed loft closet laundry
        nursery
        """,
    "prize": "ribbon medal cup badge rosette crown trophy certificate sash wreath bouquet",
    "contest": """
        sack_race singing_contest kite_contest boat_race egg_race dancing_contest spelling_contest
        pumpkin_contest pet_parade drawing_contest snail_race jumping_contest hat_parade
        """,
    "fear": """
        cellar attic tunnel cave forest tower barn swamp well mill castle basement closet shed woods
        loft lake jungle
        """,
    "dish": "soup stew porridge pancakes noodles pie beans chowder pudding stuffing",
}


def _people(fields: str, table: str) -> tuple[dict[str, str], ...]:
    """Read a table of people; "she" and "he" bring their pronouns along."""
    pronouns = {
        "she": {"he": "she", "him": "her", "his": "her", "He": "She", "His": "Her", "kid": "girl"},
        "he": {"he": "he", "him": "him", "his": "his", "He": "He", "His": "His", "kid": "boy"},
    }
    people = []
    for line in table.strip().splitlines():
        name, sex, *traits = (cell.replace("_", " ") for cell in line.split())
        people.append({"name": name, **pronouns[sex], **dict(zip(fields.split(), traits, strict=True))})
    return tuple(people)


# The traits never change from story to story: whoever reads enough knows that Nora's goat is called Pepper.
CHILDREN = _people(
    "pet petname color home aunt",
    """
    Nora    she goat    Pepper    blue    the_mill        Aunt_Rita
    Tess    she hen     Button    orange  the_hotel       Aunt_Cora
    Ruby    she mouse   Captain   violet  the_theater     Aunt_Agnes
    Hazel   she cat     Duchess   red     a_cabin         Aunt_Ruth
    Ivy     she kitten  Cotton    pink    the_valley      Aunt_Sylvia
    Clara   she crow    Admiral   golden  a_cave          Aunt_Pearl
    Maya    she puppy   Rocket    green   the_village     Aunt_Flora
    June    she lamb    Velvet    white   an_attic        Aunt_Marina
    Daisy   she dog     Feather   silver  the_farm        Aunt_Helen
    Bella   she duck    Judge     yellow  the_library     Aunt_Joan
    Juno    she frog    Lightning brown   a_museum        Aunt_Vera
    Emma    she pigeon  Sultan    black   a_barn          Aunt_Dot
    Anna    she pony    Clover    purple  the_city        Aunt_Edith
    Lucy    she turtle  Blossom   gray    the_bakery      Aunt_Martha
    Alice   she calf    Cherry    red     a_treehouse     Aunt_Pearl
    Rose    she rabbit  Ripple    pink    the_harbor      Aunt_Flora
    Grace   she donkey  Pebble    golden  the_tower       Aunt_Marina
    Mia     she snail   Professor green   the_town        Aunt_Helen
    Lily    she parrot  Ginger    white   a_cottage       Aunt_Joan
    Amy     she goose   Sugar     silver  the_station     Aunt_Vera
    Kate    she cat     Honey     yellow  the_palace      Aunt_Dot
    Molly   she kitten  Sunny     brown   an_inn          Aunt_Edith
    Nina    she crow    Shadow    black   the_woods       Aunt_Martha
    Sophie  she puppy   Patch     purple  the_lighthouse  Aunt_Rita
    Hannah  she lamb    Spot      gray    a_tent          Aunt_Cora
    Leah    she dog     Buddy     blue    a_wagon         Aunt_Agnes
    Stella  she duck    Cookie    orange  the_castle      Aunt_Ruth
    Luna    she frog    Copper    violet  a_boat          Aunt_Sylvia
    Ben     he  pigeon  Duke      green   a_cabin         Aunt_Vera
    Tom     he  pony    Prince    white   the_valley      Aunt_Dot
    Finn    he  turtle  Major     silver  a_cave          Aunt_Edith
    Leo     he  calf    General   yellow  the_village     Aunt_Martha
    Max     he  rabbit  Star      brown   an_attic        Aunt_Rita
    Sam     he  donkey  Comet     black   the_farm        Aunt_Cora
    Jack    he  snail   Storm     purple  the_library     Aunt_Agnes
    Oscar   he  parrot  Thunder   gray    a_museum        Aunt_Ruth
    Hugo    he  goose   Frost     blue    a_barn          Aunt_Sylvia
    Milo    he  goat    Rusty     orange  the_city        Aunt_Pearl
    Theo    he  hen     Sandy     violet  the_bakery      Aunt_Flora
    Felix   he  mouse   Tiger     red     a_treehouse     Aunt_Marina
    Jonah   he  puppy   Bear      pink    the_harbor      Aunt_Helen
    Otto    he  lamb    Ace       golden  the_tower       Aunt_Joan
    Eli     he  dog     Jet       yellow  the_town        Aunt_Cora
    Ned     he  duck    Bolt      brown   a_cottage       Aunt_Agnes
    Gus     he  frog    Dash      black   the_station     Aunt_Ruth
    Peter   he  pigeon  Flash     purple  the_palace      Aunt_Sylvia
    Henry   he  pony    Bubble    gray    an_inn          Aunt_Pearl
    Charlie he  turtle  Banana    blue    the_woods       Aunt_Flora
    Toby    he  calf    Basil     orange  the_lighthouse  Aunt_Marina
    Simon   he  rabbit  Maple     violet  a_tent          Aunt_Helen
    Luke    he  donkey  Pumpkin   red     a_wagon         Aunt_Joan
    Noah    he  snail   Potato    pink    the_castle      Aunt_Vera
    Owen    he  parrot  Butter    golden  a_boat          Aunt_Dot
    Walter  he  goose   Cloud     green   the_mill        Aunt_Edith
    Ralph   he  goat    Pearl     white   the_hotel       Aunt_Martha
    Jasper  he  hen     Pilot     silver  the_theater     Aunt_Rita
    """,
)

VILLAGERS = _people(
    "trade shop",
    """
    Mrs._Fox       she baker       bakery
    Mr._Stone      he  builder     yard
    Mrs._Snow      she teacher     school
    Mr._Wells      he  farmer      farm
    Miss_Page      she librarian   library
    Mr._Cook       he  chef        inn
    Mrs._Bell      she tailor      shop
    Mr._Marsh      he  fisherman   harbor
    Miss_Rose      she nurse       hospital
    Mr._Wood       he  carpenter   workshop
    Mrs._Hill      she painter     studio
    Mr._Brook      he  sailor      dock
    Miss_Lane      she dancer      theater
    Mr._Banks      he  clerk       bank
    Mrs._Rivers    she potter      barn
    Mr._Field      he  gardener    garden
    Miss_Winter    she singer      hall
    Mr._Cross      he  driver      station
    Mrs._Gold      she jeweler     market
    Mr._Short      he  giant       cave
    Miss_Bird      she pilot       tower
    Mr._Frost      he  cook        hotel
    Mrs._Lamb      she weaver      mill
    Mr._Parks      he  guard       castle
    """,
)

# "aunt" stands for the hero's own.
GROWN_UPS = _people("", "Mama she\nPapa he\nGrandma she\nGrandpa he\naunt she")

MEMORY = {
    "thing": "<toy>",
    "adj": "[<thing_adj>|<color>]",
    "place": "<place>",
    "place2": "<place>",
    "beast": "<beast>",
    "badj": "<beast_adj>",
    "food": "<pastry>",
    "filling": "<filling>",
    "dish": "<dish>",
    "veg": "<vegetable>",
    "skill": "<skill>",
    "contest": "<contest>",
    "prize": "<prize>",
    "fear": "<fear>",
    "item": "<household>",
    "room": "<room>",
    "part": "<part>",
    "day": "<weekday>",
    "pcolor": "<color>",
    "dessert": "[cake|pie|tart|pudding|cobbler|loaf|strudel|crumble|trifle|torte]",
}

# Any of these in a template, as a word of its own, stands for all of its line.
SYNONYMS = """
    At last|Finally|Soon|Later
    Then|Suddenly|Soon
    Just then|Before long|A moment later|That very minute
    looked|searched|hunted|peeked|checked|dug|felt around
    wanted to|wished to|hoped to|planned to|meant to|decided to
    laughed|giggled|smiled|cheered|danced|sang
    found|noticed|spotted|discovered|saw|spied
    loved|liked|adored|admired|treasured|praised
    clapped|smiled|cheered|bowed|nodded|waved
    fetched|bought|borrowed|found|collected|gathered|picked
"""

RULES = {
    "single": """
        - a~<thing_adj> <household>
        - a~<thing_adj> <color> <household>
        - a~<thing_adj> <material> <household>
        - a~<color> <material> <household>
        """,
    "item": """
        - a~<thing_adj> <household>
        - a~<thing_adj> <color> <household>
        - a~<thing_adj> <material> <household>
        - a~<color> <material> <household>
        - <num> <thing_adj> <households>
        - <num> <color> <households>
        """,
    "items": """
        - <item> and <item>
        - <item>, <item>, and <item>
        """,
    "one": """
        - a~<animal_adj> <animal>
        - a~<animal_adj>, <animal_adj> <animal>
        - a~<animal_adj> <color> <animal>
        """,
    "some": """
        - <num> <animal_adj> <animals>
        - <num> <animal_adj> <color> <animals>
        """,
    "creature": """
        - <one>
        - <some>
        """,
    "snack": """
        - a~<food_adj> <food>
        - <num> <food_adj> <foods>
        - a~<food_adj> <filling> <pastry>
        - <num> <food_adj> <filling> <pastries>
        - some <food_adj> <vegetable>
        - a [cup|mug|jug|bottle|bowl|glass|bucket] of [warm|hot|cold|sweet|creamy|fresh|cool|spicy|mild|
          rich|tasty] <drink>
        """,
    "sight": """
        - a~<place_adj> <landmark>
        - a~<place_adj> <color> <landmark>
        - a~<place_adj> <tree> tree
        - <num> <color> <flower>
        """,
    "like": """
        - like a~<animal_adj> <animal>
        - like <num> <animal_adj> <animals>
        """,
    "as": """
        - as <trait> as a~<animal>
        - as <trait> as a~<animal_adj> <animal>
        - as <trait> as <num> <animal_adj> <animals>
        """,
    "thing_like": """
        - as [bright|round|big|light|plain|heavy|small|soft|hard|flat|smooth|pretty|thick|strange] as
          a~<thing_adj>
          <household>
        - like a~<thing_adj> <material> <household>
        """,
    "prep": "- [under|behind|beside|near|beneath|above|opposite|below|by]",
    "where": """
        - <prep> <sight>
        - between <sight> and <sight>
        - <prep> a~<thing_adj> <household>
        """,
    "when": """
        - One <weather> <daypart>
        - One <weather>, <weather> <weekday>
        - One <weather> <daypart> in <month>
        - On a~<weather> <weekday> in <month>
        - One <weekday> in <month>
        """,
    "noises": """
        - <noise>! <noise>!
        - <noise>, <noise>, <noise>!
        """,
    "did": """
        - [polished|painted|washed|chased|carried|counted|dropped|pulled|pushed|weighed|wrapped|sold|bought|
          fixed|
          cleaned|buried|hid|borrowed|caught|threw|drew|decorated|guarded|lifted|balanced|measured|admired|
          followed|lost|
          built|opened|shook|sketched|tied]
        """,
    "doing": """
        - [holding|polishing|painting|washing|chasing|carrying|counting|dropping|pulling|pushing|weighing|
          wrapping|
          guarding|fixing|cleaning|hiding|catching|throwing|drawing|lifting|balancing|admiring|opening|
          building|shaking|
          hugging|waving|tying]
        """,
    "eating": "- [eating|sharing|tasting|carrying|holding|hiding|finishing|guarding|enjoying|dropping]",
    "ripe": """
        - [ripe|sweet|juicy|crisp|tender|big|round|fresh|huge|smooth|fine|plump|healthy|shiny|heavy|perfect]
        """,
    "gave": "- [gave|sent|handed|offered|brought|passed|threw|showed]",
    "ate": "- [shared|tasted|finished|tried|enjoyed|had]",
    "rested": """
        - [slept|sat|danced|waited|rested|stood|sang|played|stayed|lived|worked|swam|hid|dreamed|hummed|
          camped|bowed|
          knelt|read|laughed|cried|talked|cooked|wrote|drew|yawned]
        """,
    "scene": """
        - ^<creature> <rested> <where>, <doing> <items>.
        - ^<prep> <sight>, <creature> <gave> <item> to <creature>.
        - ^<creature> and <creature> <did> <items>.
        - ^<prep> <sight> [stood|lay|hung] <item>, <item>, and <item>.
        - ^<some>, <some>, and <one> <went> by, <adv> and <adv>.
        - ^<prep> <sight>, <creature> <ate> <snack>, <snack>, and <snack>.
        - ^<one> <did> <item>, and <one> <did> <item>.
        - It smelled of <smell> and <smell>, and <creature> <rested> <where>.
        - The [sky|sun|moon|light|air] was <color> and <weather>, and <creature> <went> past, <doing> <item>.
        - Somewhere <creature> <said> <adv>, "<noise>, <noise>!" and <creature> <rested> <prep> <sight>.
        """,
    "open": """
        - <when>, {hero} and {hero.his} {hero.pet} <went> to the <place_adj> {place}.
        - {hero} lived in {hero.home} with {hero.petname} the {hero.pet}. <when>, they <went> to the
          <place_adj>
          {place} <like>.
        - <when>, the {place} smelled of <smell> and <smell>. {hero} <went> there with <item>.
        - {hero} was a~<kid_adj>, <kid_adj> {hero.kid} who loved <hobby> and <hobby>. <when>, {hero.he}
          <went> to the
          {place}.
        - <when>, clouds like <animals> and <households> <went> over the {place}. {hero} watched <prep>
          <sight>.
        - {hero} liked <hobby>, <snack>, and anything {hero.color}. <when>, {hero.he} <rested> near the
          <place_adj>
          {place}.
        - <noises> {hero} <rested> near the <place_adj> {place}, <doing> <item>. It was a~<weather> <daypart>
          in
          <month>.
        - <when>, {hero} put on a~<thing_adj> <color> [coat|hat|scarf|cape|dress|shirt|jacket|sweater] and
          <went> to
          the <place_adj> {place}.
        """,
    "tag": """
        - <said> {hero} <adv>
        - <said> {hero}, <doing> <item>
        - {hero} <said> <like>
        """,
    "ftag": """
        - <said> {friend} <adv>
        - <said> {friend}, <doing> <item>
        - {friend} <said> <like>
        """,
    "gtag": """
        - <said> {grown} <adv>
        - <said> {grown}, <doing> <item>
        - {grown} <said> <like>
        """,
    "dream": """
        - That night {hero} dreamed of <creature> and <creature> <doing> <items>.
        - That night {hero} dreamed of <some>, <doing> <item> <where>.
        - That night, <creature> <rested> near {hero.home}, <doing> <item>.
        - Then {hero} and {hero.petname} <went> home past <creature>, <doing> <items>.
        - {hero.petname} <rested> <where>, and <creature> <rested> <prep> <sight>.
        - {hero} kept <item> and <item> <prep> <item> to remember it by.
        """,
    "felt": """
        - felt <good> and <good>
        - was <as>
        - was <good>, <good>, and a bit <bad>
        """,
    "felt_bad": """
        - felt <bad>, <bad>, and <bad>
        - was <bad> and <bad>
        - felt like a~<thing_adj> <material> <household>
        - grew <bad> and sat <where>
        """,
}

_BREAK = ""

PLOTS = {
    "lost": (
        """
        - <open> {hero.He} had a~{adj} {thing}, <thing_like>.
        - <when>, {hero} took a~{adj} {thing} to the <place_adj> {place}, <doing> <item>.
        - {grown} <gave> {hero} a~{adj} {thing}. <when>, {hero} <went> with it to the <place_adj> {place},
          <adv>.
        """,
        """
        - {hero.He} <rested> <where>, and when {hero.he} stood up, the {thing} was gone! {hero} <felt_bad>.
        - There {hero.he} stopped to watch <creature>, <doing> <item>, and the {thing} was gone! {hero}
          <felt_bad>.
        - "<wow>! Where is my {thing}?" <tag>. {hero} <felt_bad>.
        """,
        _BREAK,
        """
        - {hero.He} looked <where>, but found <items>.
        - {hero.He} looked <where> and <where>. There was only <single>.
        - {hero.He} asked <one>. It only <rested> <where>, <doing> <item>.
        - "Have you seen a~{thing}?" {hero} asked <creature>. ^<creature> had seen <item>, but no {thing}.
        """,
        """
        - "<wow>! Look <where>," <gtag>. <scene>
        - "<wow>, let us look together," <ftag>. {friend} looked <where>.
        - "Things hide <where>," <said> {villager} the {villager.trade} <adv>. <scene>
        """,
        """
        - Then {hero.petname} the {hero.pet} <went> <prep> <sight>. There, <prep> <item>, lay the {thing}!
        - At last something {adj} [shone|moved|gleamed|winked|rolled|rattled|shook] <where>. It was the
          {thing},
          and <one> was [hugging|guarding|holding|pulling|chasing|kissing|licking|polishing|washing|riding]
          it!
        - Then {hero} met <creature>, [hugging|guarding|holding|pulling|chasing|washing|carrying] the {adj}
          {thing} <where>.
        """,
        _BREAK,
        """
        - {hero} <felt>, and the {thing} never left {hero.his} [bag|hand|pocket|side|sight] again. <dream>
        - "[Look twice and you will find|Never stop looking|Keep your eyes open|Take good care of it],"
          <gtag>. {hero}
          <felt>, holding the {thing}. <dream>
        - From then on, {hero} kept the {adj} {thing} <prep> <item>. <dream>
        """,
    ),
    "sharing": (
        """
        - <open> For lunch {hero.he} had a~<food_adj> {filling} {food}.
        - <when>, {grown} <gave> {hero} a~<food_adj> {filling} {food} near the <place_adj> {place}. It was
          <thing_like>.
        """,
        """
        - There {friend} <rested> <where>, <bad> and hungry, <doing> <item>.
        - "<wow>! May I have some {food}?" <ftag>. "No!" <tag>.
        - {friend} was hungry and <bad>. But {hero} hid the {food} <where>.
        """,
        _BREAK,
        """
        - Then {hero} saw <creature>, sharing <snack> with <creature>.
        - Alone, {hero} <felt_bad>. The {food} tasted of <smell> and <smell>.
        - But the {food} was <thing_like>, and {hero} <felt_bad>. <scene>
        """,
        """
        - {hero} cut the {food} with <item>. "<wow>! Half is for you," <tag>.
        - "<wow>, I am sorry," <tag>. "Let us share the {food} <prep> <sight>."
        - So {hero} <went> to {friend}, <eating> the {food} <like>. "<wow>! Eat with me," <tag>.
        """,
        """
        - {friend} <gave> {hero} <snack>, and even {friend.petname} the {friend.pet} <ate> <snack>.
        - "<wow>!" <ftag>. "Please have <snack> and <snack>."
        - They [ate|shared|enjoyed|finished|tasted] the {food} with <snack> and <snack>, <doing> <item>.
        """,
        _BREAK,
        """
        - {hero} and {friend} were <good>. [Sharing makes a small {food} big|A shared {food} is twice as
          sweet|Two can
          enjoy one {food}|Half a {food} is more with a friend]. <dream>
        - "The best {food} is a shared {food}," <gtag>. <dream>
        - After that, {friend} always <gave> {hero} half of every {food}, and <item>. <dream>
        """,
    ),
    "fear": (
        """
        - {hero} was <as>, but {hero.he} was afraid of the {fear}. <scene>
        - <open> {hero} was <good>, but {hero.he} was afraid of the {fear}.
        - {hero} was a~<kid_adj>, <kid_adj> {hero.kid}, but afraid of the {fear}. "There is <one>, <doing>
          <item>!"
          <tag>.
        """,
        """
        - <when>, {friend} lost <item> in the {fear}. "<wow>! Who will help me?" <ftag>.
        - <when>, <one> was stuck in the {fear}, <doing> <item>. "<noise>, <noise>!" it <said> <adv>.
        - <when>, {grown} needed <item> and <item> from the {fear}. {hero} <felt_bad>.
        """,
        _BREAK,
        """
        - "<wow>! Take <item>, and think of <creature>," <gtag>.
        - "I was afraid of <animals>," <gtag>. "Then I <did> <item>."
        - "<wow>! I will come with you," <ftag>, <doing> <item>.
        """,
        """
        - {hero} took <item> and <went> in <like>, <adv> and <adv>.
        - {hero.He} thought of <creature>, <eating> <snack>, and <went> in <adv>.
        - {hero.petname} the {hero.pet} <went> in <like>, and {hero} <went> after, <doing> <item>.
        """,
        """
        - Inside was only <one>, <doing> <items>.
        - There {hero.he} found <item>, <item>, and <one>. It was <bad>, too.
        - "<noise>! <noise>!" But it was only <one>, <doing> <items>.
        """,
        _BREAK,
        """
        - "<wow>! I did it!" <tag>. The {fear} was <thing_like>. <dream>
        - {hero} <felt>. [Being brave is going while you are afraid|Brave people shake, too|The {fear} was
          only a
          {fear}|Fear grows small when you look at it]. <dream>
        - Now {hero} <rested> in the {fear} every <weekday>, <doing> <item>. <dream>
        """,
    ),
    "animal": (
        """
        - <open>
        - <when>, {hero} and {hero.petname} the {hero.pet} <went> past <sight>, <doing> <item>.
        """,
        """
        - There a~{badj} {beast} was caught <prep> <item>. It <felt_bad>.
        - ^<prep> <sight> lay a~{badj} {beast}, hurt by <item>. It <felt_bad>.
        - There a~{badj} {beast} <rested> <where>, for <creature> had stolen its <food>. It <felt_bad>.
        - "<noise>! <noise>!" It was a~{badj} {beast}, lost <where>.
        """,
        _BREAK,
        """
        - "<wow>, little {beast}!" <tag>. {hero} took <items>.
        - "Poor {beast}!" <tag>. {hero.petname} <went> to fetch <item>.
        - "<wow>! We will help you, {beast}," <tag>. <scene>
        """,
        """
        - They helped it <adv> with <item>, and {grown} <gave> it <snack>.
        - {hero.He} <gave> it <snack>, <snack>, and a bed of <flower> <prep> <item>.
        - {villager} the {villager.trade} <gave> them <item>. They carried the {beast} past <sight> and
          <sight>.
        - {hero} and {hero.petname} <did> <item> and <did> <item>, and the {beast} was free!
        """,
        """
        - The {beast} was <good> again and <went> home <like>.
        - By <weekday> the {beast} <felt>, and it <went> <prep> <sight>.
        - Soon it <rested> <where>, <doing> <item>. It <felt>.
        """,
        _BREAK,
        """
        - One <weekday>, the {badj} {beast} <gave> {hero} <items>. [A kindness comes back|No friend is too
          small|Help
          goes around|Kind hands have many friends]. <dream>
        - In <month>, {hero} was lost <where>. The {beast} came, <doing> <item>, and led {hero.him} home.
          <dream>
        - {hero} and the {badj} {beast} stayed friends, <good> and <good>. <dream>
        """,
    ),
    "weather": (
        """
        - <open> {hero.He} had {hero.his} {adj} {thing} and <item>.
        - <when>, {hero} <rested> near the <place_adj> {place}, [holding|polishing|painting|hugging|carrying|
          fixing|washing|admiring|cleaning] {hero.his}
          {adj} {thing}.
        """,
        """
        - <noises> Then [rain|snow|hail|sand|fog|leaves|hailstones] fell <like>. "<wow>! My {thing}!" <tag>.
        - Then the sky grew <color>, and the wind took <item>, <item>, and <item>. {hero} hid the {thing}
          <where>.
        - <noises> Then a [storm|wind|flood|shower|gale] came <like>. {hero} held the {thing} and <felt_bad>.
        """,
        _BREAK,
        """
        - ^<prep> <sight> {hero.he} found {friend}, <doing> <item>, and <creature>, <doing> <item>.
        - {villager} the {villager.trade} <gave> {hero.him} <snack> and <item>. {friend} was there, <good>
          and wet.
        - {hero.petname} the {hero.pet} <went> <prep> <sight>. There {friend} <rested>, <doing> <item>.
        """,
        """
        - They played with the {thing}, told of <creature>, and <ate> <snack>.
        - "<wow>! Once <creature> <did> <item>," <ftag>. {hero} told of <creature>, <doing> <item>.
        - They built a [tent|house|boat|castle|nest|den] of <items>, and <ate> <snack> and <snack>.
        """,
        """
        - "<noise>, <noise>!" <tag>. {friend} laughed <like>.
        - They counted <num> <animals>, <num> <households>, and <num> <foods>, <adv> and <adv>.
        - {friend.petname} the {friend.pet} <did> <item>, and all of them laughed <adv>.
        """,
        _BREAK,
        """
        - At last the {place} was <as>, and <creature> <rested> <where>. {hero} lent {friend} the {adj}
          {thing}. <dream>
        - Then a~<color> and <color> rainbow came, and {hero} <felt>. [Friends make bad weather short|Every
          storm
          ends|Rain is better with friends]. The {thing} was dry. <dream>
        - "I hope it is <weather> on <weekday>," <tag>. The {adj} {thing} was safe. <dream>
        """,
    ),
    "baking": (
        """
        - <when>, {grown} and {hero} baked a~{filling} {dessert} for {villager} the {villager.trade}, <doing>
          <item>.
        - <when>, {villager} the {villager.trade} was <bad>, <bad>, and <bad>. "<wow>! A~{filling} {dessert}
          will
          help," <gtag>.
        - {hero} loved <hobby>, <foods>, and <foods>. <when>, {hero.he} baked a~{filling} {dessert} with
          {grown}.
        """,
        """
        - They took <num> [spoons|cups|bags|bowls|bottles] of <ingredient>, and <ingredient>, <ingredient>,
          and
          <ingredient>.
        - {hero} stirred <adv> with <item>, and {hero.petname} the {hero.pet} <ate> the <ingredient>.
        - {hero} fetched <ingredient>, <ingredient>, and <ingredient>, and {grown} <did> <item>.
        """,
        _BREAK,
        """
        - But {hero} took <ingredient> in place of <ingredient>! The {dessert} was <thing_like> and smelled
          of <smell>.
        - Then <one> <went> in, <doing> <item>. <noises> Down went the {dessert}!
        - {hero} <went> out to watch <creature>, <doing> <item>, and the {dessert} burned.
        """,
        """
        - {hero} <felt_bad>. "<wow>! Our {dessert}!" <tag>.
        - "<wow>, what have I done?" <tag>. {hero} was <bad>, <bad>, and <bad>.
        """,
        """
        - "<wow>! Bake it again, <adv>," <gtag>. <scene>
        - "My first {dessert} was <thing_like>," <gtag>. So they took <ingredient>, <ingredient>, and
          <ingredient>.
        - "<wow>! Even <animals> spoil a~{dessert}," <gtag>. This time {hero} stirred <adv> and <adv>.
        """,
        _BREAK,
        """
        - The new {dessert} was <food_adj>, <food_adj>, and <food_adj>. "<wow>!" <said> {villager} <adv>.
          <dream>
        - {villager} <ate> the {filling} {dessert} with <snack>, <good> and <good>. [Try again and it will be
          good|Good
          cooks begin again|The second try is sweeter]. <dream>
        - {villager} <felt>, and <gave> {hero} <item> for the {filling} {dessert}. <dream>
        """,
    ),
    "mending": (
        """
        - <open> {hero.He} had a~{adj} {thing} from {grown}.
        - {grown} had a~{adj} {thing}, as old as <num> <animal_adj> <animals>. It stood <prep> <items>.
        """,
        """
        - <when>, {hero.petname} the {hero.pet} chased <creature> past <item>. <noises> The {thing} lost its
          {part}!
        - <when>, {hero} dropped <item> on the {thing}. <noises> The {part} broke.
        - <when>, {hero} fell over <item> and <item>. <noises> The {part} of the {thing} broke.
        """,
        _BREAK,
        """
        - {hero} <felt_bad>. {hero.He} tried <glue>, <glue>, and <ingredient>.
        - "<wow>! The {thing}!" <tag>. {hero.He} tried <glue> and <glue>, but it was as bad as <item>.
        - {friend} brought <glue>, <ingredient>, and <item>, but the {thing} was <thing_like>.
        """,
        """
        - So {hero} <went> to {villager} the {villager.trade}, past <creature>, <doing> <item>.
        - Then {villager} the {villager.trade} came by, <doing> <item>, <adv> and <adv>.
        """,
        """
        - "<wow>! We need <glue>, <item>, and <item>," <said> {villager} <adv>.
        - "<wow>! I once mended <item> for <creature>," <said> {villager}, <doing> <item>.
        - {villager} took <glue> and <item>, and {hero} [glued|taped|tied|sewed|mended|fixed|polished|
          painted] the {part}, <adv> and <adv>.
        """,
        _BREAK,
        """
        - At last the {adj} {thing} was <thing_like>, and {hero} <felt>. [What is mended is loved twice|A
          mended {thing}
          has a story|Old things can be new again|Patience mends much]. <dream>
        - {hero} <gave> {villager} <snack> and took the {thing} home <like>. <dream>
        - "<wow>! The {part} is <color> now," <gtag>, and {hero} loved the {thing} more than <item>. <dream>
        """,
    ),
    "surprise": (
        """
        - <when>, {hero} <did> a present for {friend}, whose birthday was on {day}.
        - {day} was the birthday of {friend}, a~<kid_adj>, <kid_adj> {friend.kid}. "<wow>! I will make a
          surprise," <tag>.
        - <open> There {hero.he} thought of {friend}, who had a birthday on {day}.
        """,
        """
        - {friend} loved {friend.color} things, <hobby>, and <animals>. So {hero} made a~{friend.color}
          {thing} from
          <items>.
        - {hero} found a~{friend.color} {thing} between <item> and <item>. It cost <item> and <snack>.
        - {hero} made a~{friend.color} {thing}, <doing> <item>. It was <thing_like>.
        """,
        _BREAK,
        """
        - {grown} baked <snack>, <creature> <did> <item>, and {hero.petname} the {hero.pet} <did> <item>.
        - They put <flower>, <snack>, and <snack> <prep> <item>.
        - {villager} the {villager.trade} came, <doing> <items>. <scene>
        """,
        """
        - "<wow>! What are you doing?" <ftag>. "^<hobby> with <animals>," <tag>.
        - But {friend} was <bad>. "Nobody has time for me," <ftag>.
        - {friend} came too soon! {hero} hid the {thing} <where>.
        """,
        """
        - "Surprise!" <tag>. "Surprise!" <said> <creature>, <doing> <item>.
        - "Surprise!" <tag>. <noises> Out came <some>, <doing> <items>.
        - On {day}, {friend} <went> past <sight>. "Surprise!" <tag>.
        """,
        _BREAK,
        """
        - "<wow>! A~{friend.color} {thing}!" <ftag>. They <ate> <snack> and were <good>. <dream>
        - {friend} <felt>, [hugging|holding|admiring|waving|lifting] the {friend.color} {thing}. [Giving is
          the best part|A secret can be sweet|Good
          friends remember|The best gifts are made with love]. <dream>
        - {friend} <rested> with the {thing}, and {friend.petname} the {friend.pet} <ate> <snack>. <dream>
        """,
    ),
    "quarrel": (
        """
        - <open> There {hero.he} met {friend}, <doing> <item>.
        - <when>, {hero} and {friend} <rested> near the <place_adj> {place}, <doing> <items>.
        """,
        """
        - They found a~{adj} {thing} <where>. "Mine!" <tag>. "No, mine!" <ftag>.
        - They saw a~{adj} {thing} <prep> <item>. Both took it and pulled <like>.
        - Then {friend} stepped on the {adj} {thing} of {hero}. <noises> "<wow>! My {thing}!" <tag>.
        """,
        _BREAK,
        """
        - {hero} <went> home, <bad> and <bad>, and {friend} <rested> <where>.
        - {hero} <rested> alone <where>, <doing> <item>, and was <bad> <like>.
        - {hero} was <bad>, {friend} was <bad>, and {hero.petname} the {hero.pet} was <bad>.
        """,
        """
        - "<wow>! Even <animals> and <animals> quarrel," <gtag>. "Give {friend} <snack>."
        - Then {hero} saw <creature>, sharing <snack> with <creature>.
        - "A friend is better than a~{thing}," <gtag>. <scene>
        """,
        """
        - So {hero} <gave> {friend} <items>. "I am sorry," <tag>.
        - So {hero} took <num> <color> <flower> and <went> to {friend}. "<wow>, I am sorry," <tag>.
        - ^<prep> <sight> they met. {friend} had <snack>, and {hero} had <item>. "Sorry!" <ftag>.
        """,
        """
        - "<wow>! You may have the {thing} until <weekday>," <ftag>.
        - "<wow>! Let us share the {thing}," <ftag>, and they <ate> <snack>.
        - They put the {thing} between them and <ate> <snack> and <snack>.
        """,
        _BREAK,
        """
        - Soon they were <good>, and <hobby> again. <dream>
        - [A friend is worth more than a {thing}|Sorry is a small word with a big heart|Friends can always
          begin
          again|It takes two to end a quarrel]. {hero} <felt>. <dream>
        - They hung the {adj} {thing} <where>, for both of them. <dream>
        """,
    ),
    "lying": (
        """
        - {grown} had a~{adj} {item} that was <thing_like>. <when>, {hero} <rested> near it, <doing> <item>.
        - <when>, {hero} and {hero.petname} the {hero.pet} played with <items>, near the {adj} {item} of
          {grown}.
        """,
        """
        - <noises> {hero} dropped <item> on the {item}, and it broke.
        - {hero} threw <item> <like>. <noises> The {item} broke.
        - Then {hero} fell over <item> and <item>. <noises> The {item} broke.
        """,
        """
        - {hero} <felt_bad> and hid it <where>.
        - "<wow>! Nobody must know," <tag>, and hid it <prep> <item>.
        """,
        _BREAK,
        """
        - "<wow>! Who broke my {item}?" <gtag>. "^<creature>, <doing> <item>!" <tag>.
        - "Where is my {adj} {item}?" <gtag>. "{hero.petname} took it, <doing> <item>," <tag>.
        """,
        """
        - But the lie was like <item> in {hero.his} [head|bed|shoe|pocket|belly|throat|ear], and {hero}
          <felt_bad>.
        - All <daypart>, {hero} <felt_bad>. Even <snack> and <snack> tasted of <smell>.
        - That night {hero.he} saw <some>, <doing> <items>. The lie was <as>.
        """,
        """
        - "<wow>! I broke it," <tag>. "I was <bad> and <bad>."
        - So {hero} <gave> {grown} <item> and <item>. "I broke it, and I lied," <tag>.
        """,
        _BREAK,
        """
        - "<wow>! The truth makes me <good>," <gtag>. They mended the {item} with <glue> and <glue>. <dream>
        - "I am <good>, for you told me," <gtag>, and they <ate> <snack>. [A lie is heavy|The truth is light|
          It is
          never too late for the truth|Honest words mend much]. <dream>
        - {hero} <felt>. They mended the {adj} {item} with <glue>, <glue>, and <item>. <dream>
        """,
    ),
    "journey": (
        """
        - <when>, {grown} <gave> {hero} a~{adj} {thing} for {villager} the {villager.trade}.
        - "<wow>! {villager} the {villager.trade} needs a~{adj} {thing}," <gtag>. "Who will take it there?"
        """,
        """
        - {hero} packed <snack>, <snack>, and <item>.
        - "We will!" <tag>. {hero.petname} the {hero.pet} took <items>.
        - {hero} took <item>, and {hero.petname} the {hero.pet} <went> <like>.
        """,
        _BREAK,
        """
        - First they came to the <place_adj> {place}. There <creature> <rested>, <doing> <item>.
        - Near the <place_adj> {place}, {hero} <ate> <snack> <where>.
        - They <went> by the <place_adj> {place}, past <creature>, <doing> <items>.
        """,
        """
        - Then came the <place_adj> {place2}. ^<one> wanted the {thing}, so {hero} <gave> it <snack>.
        - Near the {place2}, the {thing} fell <prep> <sight>. <noises> {hero.petname} fetched it <like>.
        - By the <place_adj>, <place_adj> {place2}, {hero} was <bad> and lost. "Go past <sight>," <said>
          <creature> <adv>.
        """,
        """
        - {hero} <went> on <like>, past <sight> and <creature>.
        - <scene>
        """,
        _BREAK,
        """
        - There was the {villager.shop}, and {villager} <rested>, <doing> <item>. "<wow>! My {thing}!" <said>
          {villager}
          <adv>.
        - "<wow>! My {adj} {thing}!" <said> {villager}, <doing> <item>. {villager.He} <gave> them <snack> and
          <item>.
        """,
        """
        - "We saw <creature> and <creature>," <tag>, and <ate> <snack>. <dream>
        - [A long road is made of short steps|Every road ends at a door|Brave feet go far|Who keeps on will
          arrive].
          {hero} <felt>. <dream>
        """,
    ),
    "garden": (
        """
        - <open> {grown} <gave> {hero.him} <num> <color> seeds for {veg}.
        - <when>, {hero} found <num> <color> seeds <where>. "They will be {veg}," <gtag>.
        """,
        """
        - {hero.He} dug <where> with <item>, and {hero.petname} the {hero.pet} dug <like>.
        - {hero.He} put them <prep> <item>, with <color> <flower> and <color> <flower>.
        - {hero.He} watered them from <item> and sang of <creature>, <doing> <item>.
        """,
        """
        - But nothing grew, and {hero} <felt_bad>.
        - "<wow>! Grow!" <tag>. But there was only <one>, <doing> <item>.
        """,
        _BREAK,
        """
        - "Seeds grow <adv>," <gtag>. "Even <animals> were small once."
        - "<wow>! Give them water and <ingredient>," <said> {villager} the {villager.trade}, <doing> <item>.
        - "<wow>! Wait until <month>," <gtag>. <scene>
        """,
        """
        - In <month>, <creature> came to eat the leaves, <doing> <item>. "<wow>!" <tag>.
        - One <weather> <daypart>, the wind took <item> and <item>, but {hero} held the leaves <adv>.
        - Then <some> <rested> on the leaves. So {hero} made a scarecrow from <items>.
        """,
        _BREAK,
        """
        - At last the {veg} were <color>, <ripe>, and <ripe>, and as big as <item>.
        - One <weather> <daypart> there were <num> {veg}, <ripe> and <ripe>, <thing_like>.
        """,
        """
        - {hero} <gave> {veg} to {friend} and to <creature>. <dream>
        - They <ate> {dish} with {veg}, <vegetable>, and <snack>. [Good things need time|Small seeds grow big|
          Who waits
          will eat|Patience is the best water]. <dream>
        - {hero} sold the {veg} for <items>, and <felt>. <dream>
        """,
    ),
    "practice": (
        """
        - <open> There {friend} tried to {skill}, <doing> <item>.
        - <when>, {hero} saw {friend} {skill} <like> near the <place_adj> {place}.
        - {hero} wanted to {skill} <like>. {friend}, a~<kid_adj>, <kid_adj> {friend.kid}, could do it <adv>.
        """,
        """
        - "<wow>! I will {skill}, too," <tag>. <noises> {hero} fell on <item>.
        - {hero} tried to {skill}, <doing> <item>, but <creature> laughed <adv>.
        - {hero} tried to {skill} <like>. <noises> Down came <item> and <item>.
        """,
        """
        - {hero} <felt_bad> and hid <where>.
        - "<wow>! I cannot {skill}," <tag>. {hero} <felt_bad>.
        """,
        _BREAK,
        """
        - "I fell on <item>, <item>, and <one>," <ftag>. "Try again, <adv>."
        - "<wow>! Think of <creature>, <doing> <item>," <ftag>.
        - "{villager} the {villager.trade} taught me," <ftag>. "Begin <adv> and end <adv>."
        """,
        """
        - So {hero} tried <where>, and <where>, <adv> and <adv>.
        - Every <weekday> {hero} tried <num> times, and <creature> watched <adv>, <doing> <item>.
        - {hero} fell over <item> and <creature>, but {grown} <gave> {hero.him} <snack>.
        """,
        _BREAK,
        """
        - One <weather> <daypart>, {hero} could {skill} <as>.
        - "<wow>! Look at me!" <tag>. {hero} could {skill} <like>, and <creature> clapped <adv>.
        """,
        """
        - "<wow>! You {skill} <like>," <ftag>. <dream>
        - [Practice is the best teacher|Nobody can {skill} at once|Fall down, get up, and try again|Small
          steps make big
          ones]. {hero} <felt>. <dream>
        - Now {hero} is teaching <creature> to {skill} <prep> <sight>. <dream>
        """,
    ),
    "contest": (
        """
        - <open> On {day} there was a~{contest}, with a~{pcolor} {prize} for the winner.
        - <when>, there was a~{contest} near the <place_adj> {place}. The winner would get a~{pcolor} {prize}.
        """,
        """
        - {hero} wanted the {prize} more than <snack> or <item>.
        - "<wow>! I will win," <tag>. "No, I will," <ftag>.
        - {hero} and {hero.petname} the {hero.pet} trained with <item>, <adv> and <adv>.
        """,
        """
        - ^<creature> came, <creature> came, and <some> <gave> everyone <snack>.
        - {villager} the {villager.trade} was the judge, <doing> <item>. "<wow>! Go!" <said> {villager}.
          <noises>
        """,
        _BREAK,
        """
        - {hero} was first, <like>. Then {friend} fell over <item> and was <bad>.
        - {hero} was near the end when <one> fell <prep> <sight>. It <felt_bad>.
        - {hero} was ahead of <creature> and <creature>. But {friend} was stuck <where>, <bad> and <bad>.
        """,
        """
        - {hero} turned back <adv>. "<wow>! I will help," <tag>.
        - "A~{prize} is only <single>," <tag>, and <went> back <like>.
        - {hero} thought of the {prize}, and then <went> back with <item>, <adv>.
        """,
        _BREAK,
        """
        - So <creature> won the {prize}, <doing> <item>, and {hero} clapped <adv>.
        - A~<kid_adj>, <kid_adj> [girl|boy] from the {place2} won the {pcolor} {prize}. They were last,
          <doing> <item>.
        """,
        """
        - "<wow>! You won a friend," <gtag>. They <ate> <snack>. <dream>
        - {friend} <gave> {hero} <snack> and a~{prize} of <flower>. [A friend is the best {prize}|Helping is
          winning|Kindness comes first]. <dream>
        - {villager} <gave> {hero} a~{pcolor} {prize}, too, and {hero} <felt>. <dream>
        """,
    ),
    "noise": (
        """
        - One <weather> night in <month>, {hero} woke up. <noises> Something was in the {room}, <prep> <item>!
        - It was a~<weather>, <weather> night. <noises> Something was in the {room}, <prep> <item>!
        """,
        """
        - "<wow>! Is it <one>, <doing> <item>?" <tag>. {hero} <felt_bad>.
        - {hero} thought of <creature>, <doing> <items>, and <felt_bad>.
        - {hero.petname} the {hero.pet} hid <prep> <item>. "<wow>! Who is there?" <tag>.
        """,
        """
        - {hero} took <items> and <went> down <like>.
        - "I will look," <tag>. {hero.He} <went> <adv>, <doing> <item>.
        """,
        _BREAK,
        """
        - ^<prep> <item> stood <items>. The shadows were like <animals>, <doing> <item>.
        - {hero.He} looked <prep> <item> and <prep> <item>. There was only <single>.
        - The moon was <as>, and the door was <thing_like>. <noises>
        """,
        """
        - Then a~{adj} {item} moved <like>! There was a~{badj} {beast}, <doing> <item>.
        - ^<prep> a~{adj} {item} was a~{badj} {beast}, eating <snack>. It <felt_bad>.
        - Out of a~{adj} {item} came a~{badj} {beast}, <eating> <snack>.
        """,
        _BREAK,
        """
        - "<wow>! It is only a~{beast}!" <tag>. {hero} <gave> it <snack> and <item>.
        - "<noise>," said the {beast} <adv>. "<noise>," <tag>. They <ate> <snack> and <snack>.
        - "<wow>! What is it?" <gtag>. "A~{badj} {beast}!" <tag>.
        """,
        """
        - Since then the {beast} has lived <prep> the {adj} {item}. <dream>
        - [Look first and fear later|In the dark small things seem big|A noise may be a friend|Every shadow
          has a
          reason]. {hero} and the {beast} were <good>. <dream>
        - The {beast} <rested> with {hero.petname}, <prep> the {item}, <good> and <good>. <dream>
        """,
    ),
}
