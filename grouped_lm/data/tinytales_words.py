"""The word lists, cast, rules and plots of TinyTales; `tinytales` says how they are read.

Lists are split at spaces ("_" stands for a space inside an entry). Rules and beats hold one alternative per
"- ". In a template [a|b] chooses, <name> draws from a list or rule, {name} is a slot that remembers, "a~" puts
a or an before what follows and "^" makes it start with a capital letter. Big lists and few fixed phrases are on
purpose: they keep the stories' entropy per token above what a plain model could otherwise learn by heart.
"""

VOWEL_SOUND = ("hour", "honest")
CONSONANT_SOUND = ("useful", "unicorn", "one", "used", "ukulele")
IRREGULAR_PLURALS = {
    "mouse": "mice", "dormouse": "dormice", "goose": "geese", "deer": "deer", "calf": "calves", "sheep": "sheep",
    "leaf": "leaves", "knife": "knives", "loaf": "loaves", "scarf": "scarves", "fish": "fish", "shelf": "shelves",
}  # fmt: skip
WITH_PLURAL = ("animal", "household", "food", "toy", "insect", "bird")

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
        ruler bottle funnel whisk lid tub mop comb bead feather brick tile wheel spring hinge pipe
        horn fan lamp drawer shelf coat shoe sack net oar cage cradle trunk dish bolt stamp map flag
        book card paper pen needle thread cloth sheet mattress table desk door window carpet bag
        pouch suitcase tank pump drill saw axe knife blade tool board plank pole stick log rod chain
        cable statue painting portrait poster photograph newspaper magazine letter package parcel
        ticket token trophy torch match stove oven fridge cooker mug glass straw blender scale timer
        radio piano guitar violin engine motor tire cart boat raft canoe paddle sail anchor tent wig
        cane fence gate sign bench sofa couch clip pin pearl shell stone rock leaf branch seed nut
        bone tooth egg
        """,
    "container": """
        basket sack box bag pocket bucket trunk drawer crate pouch jar tin bundle suitcase hamper
        cupboard
        """,
    "thing_adj": """
        small shiny old new tiny round bright smooth wooden striped spotted painted dusty rusty tin
        little golden silver heavy light soft plain pretty faded polished patched wonderful curious
        funny strange lovely handsome sturdy chipped worn tidy neat battered glossy dented sparkling
        glittering odd fancy simple special precious crooked cheap homemade square flat hollow thick
        thin narrow wide broad splendid ordinary peculiar floppy creaky clean elegant enormous
        gigantic miniature rare unusual long short large huge big tall deep dark pale bent broken
        dry wet dirty muddy empty full open famous foreign royal ancient antique modern perfect
        delicate fragile sharp blunt hard warm cold hot frozen folded rolled wrapped woven carved
        engraved decorated torn loose tight sweet magical secret mysterious magnificent beautiful
        ugly charming cute humble useful useless valuable expensive borrowed stolen forgotten lost
        missing favorite spare extra double triple twisted curved oval pointed stuffed foam plastic
        rubber stained dull vivid colorful glowing blinking noisy silent rotten fresh burnt melted
        scratched cracked bruised massive modest portable fuzzy hairy furry rough invisible inflated
        shining musical spinning swinging floating flying faulty classic crude
        """,
    "color": """
        red blue green yellow purple orange pink white brown gray black violet crimson amber ivory
        golden silver copper navy cream tan rainbow cherry olive plum peach rose ruby
        """,
    "material": """
        glass copper clay paper straw leather velvet wool iron cotton felt brass marble bamboo
        cardboard silk oak pine ivory pearl steel lead bronze ceramic plastic rubber wax linen nylon
        cloth granite stone wooden fur canvas lace crystal metal tin foam chocolate sugar butter ice
        snow sand
        """,
    "num": "two three four five six seven eight nine ten eleven twelve thirteen twenty",
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth last",
    # --- living things
    "animal": """
        squirrel hedgehog rabbit mouse fox badger otter mole beaver deer owl robin sparrow duck
        goose swan heron crow magpie pigeon turtle tortoise frog toad newt lizard snail beetle
        cricket butterfly bee moth caterpillar spider ant worm goat lamb calf pony donkey piglet
        kitten puppy hen chick rooster bat raccoon raven dove chicken bear wolf cat dog pig cow
        horse sheep bird crab whale seal eagle hawk camel elephant lion tiger monkey dolphin shark
        snake dragon unicorn buffalo bull ram ox fly turkey gorilla squid salmon trout
        """,
    "beast": """
        squirrel hedgehog rabbit fox_cub badger otter mole beaver fawn owl robin sparrow duckling
        heron crow magpie wren finch lark turtle tortoise toad newt lizard lamb calf donkey piglet
        kitten chick raccoon skunk dormouse hare raven dove parrot pelican puffin
        """,
    "animal_adj": """
        shy plump clever friendly sleepy hungry gentle fluffy grumpy cheerful quick proud brave
        lonely timid playful polite lazy silly muddy noisy quiet bold wise jolly merry restless
        skinny patient elderly yawning dancing snoring singing puzzled greedy thirsty tame wild
        spotted striped fuzzy stubborn graceful clumsy solemn young old small large tiny giant huge
        busy calm careful curious eager famous fast fierce funny furry grand happy humble kind lucky
        mighty modest nervous odd pretty rare royal serious sleeping slow smart soft strange strong
        sweet tired tough wet weary handsome lovely charming fancy honest loyal plain rich smiling
        strict swift tall trembling wandering worried bored brilliant chilly cute dusty fat foolish
        gloomy lost loud lively messy mysterious naughty ordinary peaceful pleasant reckless round
        sneaky spoiled tender thin tidy ugly wealthy gifted daring fearless elegant scared bearded
        masked crying laughing running jumping sneaking swimming traveling hopping nasty dirty
        generous cautious hopeful keen local learned noble dear enormous excited exhausted flying
        frightened grateful hidden idle invisible magical neat painted retired rude shiny shocked
        skilled sleek stray stern trusted vain visiting whispering witty
        """,
    "flower": """
        daisies tulips roses poppies violets lilies sunflowers berries herbs weeds mushrooms grass
        moss flowers leaves vines bulbs seeds
        """,
    "vegetable": """
        carrots peas beans turnips potatoes onions radishes pumpkins tomatoes peppers melons
        strawberries herbs mushrooms grapes apples berries squash corn spinach garlic rice wheat
        nuts peanuts almonds lettuce cabbage pumpkin
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
        field quarry chapel ferry fountain village_green village town city camp station school
        castle palace cabin church shop store zoo museum theater desert mountain coast shore island
        canal dam track trail road street avenue alley plaza yard lawn pasture plantation ranch inn
        tavern airport factory hospital office gym pool arena stadium fair circus temple shrine fort
        marsh canyon
        """,
    "place_adj": """
        quiet sunny windy shady busy old green misty muddy leafy grassy mossy steep lonely little
        narrow noisy crowded sleepy rocky sandy hidden distant nearby peaceful empty foggy frosty
        wild cool damp gloomy silent winding famous bright calm cold warm hot dark dry wet dusty
        deep high low wide long round large small huge tiny vast pretty lovely charming beautiful
        ugly strange odd curious mysterious magical secret ancient new modern broken abandoned
        forgotten crooked bare snowy icy rural local royal holy humble friendly pleasant plain
        remote scenic tidy neat white open closed flooded frozen fancy grand gray
        """,
    "landmark": """
        log stump rock fence gate bush hedge wall bench ladder haystack barrel cart boat ditch
        doorway step tent scarecrow signpost boulder statue trough hammock nest hollow_tree mailbox
        pathway tree tower wagon cabin shed hut cave pond lake stream hole hill mound path road arch
        pillar post pole lamp clock bell flag swing slide tunnel staircase roof balcony porch window
        garden lawn web stall fire oven stove pit crane ship raft train truck bus car bicycle mirror
        table couch sofa chest crate basket fountain temple barn bridge bucket piano engine wheel
        cannon tank
        """,
    "weather": """
        sunny rainy windy cloudy foggy frosty snowy chilly warm hot cool breezy stormy misty bright
        gray golden still crisp mild damp clear blue pleasant glorious dull dark wet dry dusty soft
        lovely perfect beautiful wild fresh quiet peaceful sleepy lazy busy strange ordinary nice
        fine freezing humid dim long short
        """,
    "daypart": "morning afternoon evening day",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": """
        January February March April May June July August September October November December spring
        summer autumn winter
        """,
    "smell": """
        mint hay rain bread honey pine grass smoke salt soap apples cinnamon ginger mud roses toast
        pepper onions moss leaves chocolate vanilla butter soup pancakes straw candles jam fish wood
        leather wax oil coffee tea sugar cream garlic flowers lemon orange peach berries paint glue
        ink paper wool cake cookies corn dust herbs fruit milk nuts perfume spices stew vinegar
        water yeast earth sand summer winter spring chalk copper iron rubber dogs cats horses
        """,
    # --- food
    "food": """
        pie cake bun tart muffin cookie pancake waffle biscuit sandwich apple pear plum peach banana
        orange cherry fig carrot roll walnut candy_cane turnover pudding noodle sausage cheese_puff
        potato caramel egg burger pizza salad taco pasta mango lemon lime grape nut bean corn pepper
        mushroom loaf cheese mint jelly peanut almond chip snack stew
        """,
    "food_adj": """
        warm sweet crunchy sticky crisp juicy buttery salty sour spicy creamy crumbly fresh hot cold
        tasty delicious fluffy golden ripe cheesy burnt plain bitter mild rich baked boiled fried
        grilled roasted smoked frozen dried chopped sliced stuffed raw tender thick thin hard soft
        round square tiny huge big small red green yellow brown white purple homemade cheap delicate
        perfect exotic organic rotten stale wet dry cool heavenly moist smooth rare famous old
        secret
        """,
    "drink": "milk cocoa lemonade tea cider water broth punch juice coffee honey cream syrup mint_tea",
    "filling": """
        blueberry apple cherry plum lemon raspberry pumpkin honey walnut peach ginger almond carrot
        coconut banana blackberry pear cinnamon mushroom cheese bean egg onion garlic potato
        chocolate mint lime grape fig mango caramel vanilla butter cream milk rice corn tomato
        spinach olive pepper salmon turkey chicken strawberry
        """,
    # --- doing
    "went": """
        walked ran skipped hopped hurried marched strolled wandered trotted raced dashed rushed
        bounded drifted climbed rode sped crept flew stepped danced jumped rolled slipped slid
        floated sailed crawled charged drove paced bounced
        """,
    "said": """
        said cried whispered called replied answered shouted sang sighed murmured laughed giggled
        mumbled announced declared muttered exclaimed added yelled warned insisted promised agreed
        joked begged repeated explained wondered claimed breathed
        """,
    "adv": """
        softly kindly gently loudly quietly happily gladly proudly shyly bravely slowly quickly
        sadly calmly warmly politely firmly sweetly eagerly hopefully merrily nervously cheerfully
        patiently seriously carefully wisely brightly boldly curiously promptly simply smoothly
        swiftly cautiously lightly deeply faintly freely frankly neatly plainly finely sharply
        steadily faithfully peacefully briefly instantly nicely perfectly properly tightly loosely
        silently secretly clearly casually wildly fiercely generously thoroughly openly strongly
        mildly sincerely
        """,
    "good": """
        happy glad proud cheerful merry thankful joyful delighted pleased brave calm cozy peaceful
        hopeful content relieved excited grateful free alive ready rich smart loved fine great
        pretty clever kind bright fresh bold special useful wise healthy comfortable satisfied
        thrilled amazed inspired blessed refreshed curious confident playful eager rested important
        gentle fearless friendly
        """,
    "bad": """
        sad worried upset cross lonely gloomy miserable nervous sorry ashamed tired unhappy
        frightened grumpy puzzled anxious glum hopeless disappointed embarrassed guilty jealous
        helpless shaky sick angry scared afraid bored cold hurt hungry thirsty confused lost weak
        sore weary troubled ill uneasy alone restless silly foolish tense stuck small shocked
        stunned pale numb terrified horrified desperate stiff terrible awful horrible bitter dull
        broken quiet forgotten unlucky annoyed alarmed distressed defeated exhausted sleepy sour
        """,
    "kid_adj": """
        cheerful curious brave shy clever gentle busy lively thoughtful stubborn dreamy kind careful
        noisy quiet helpful honest polite patient restless messy small tall sleepy bright daring
        happy cautious funny friendly eager proud playful lucky young calm loud smart sweet merry
        serious nervous adventurous creative charming confident energetic generous hungry
        imaginative loyal modest neat quick silly strong tidy tough wild wise
        """,
    "noise": """
        Plip Plop Bang Crash Thump Whoosh Splash Boom Pop Snap Buzz Ding Swish Click Tap Rumble
        Clink Ping Zip Crack Smash Hum Slam Knock Drum Bam Bash Dong Rush Ring Roll Slip Twist Whip
        Zoom Zap Bark Chop
        """,
    "wow": """
        Goodness Oh My Look Well Hooray Hello Listen Dear_me Hush Wait Gosh Come_along Alas Bravo
        Now Ah Wonderful Stop Hey Please Right Sure Indeed Great Fine Good Yes Amazing Excellent
        Perfect Alright Okay Marvel Thanks Welcome Peace Courage Quick Quiet Easy
        """,
    "hobby": """
        painting singing fishing dancing sewing knitting skating swimming rowing juggling reading
        drawing climbing baking digging whistling puzzles gardening poetry marching cooking hiking
        running jumping camping hunting_eggs writing sailing acting cycling surfing boxing racing
        diving weaving magic chess cards tennis football baseball soccer music stories jokes maps
        stamps shells planting shopping spelling counting counting_stars guessing_games talking
        walking building collecting
        """,
    "skill": """
        juggle whistle skate swim row knit sew dance fish paint climb dive sail cartwheel hum drum
        whittle weave write spell count ski paddle bake cook draw
        """,
    "ingredient": """
        flour sugar butter eggs milk honey oats nuts salt cream cocoa vanilla yeast cinnamon ginger
        cloves berries almonds syrup water rice corn cheese apples lemon oil chocolate bananas
        carrots pumpkin mint pepper garlic herbs coconut peanuts seeds jam jelly wheat coffee tea
        vinegar spices onions beans tomatoes potatoes
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
    "treasure": """
        pearls rubies coins marbles buttons candles diamonds medals postcards fossils crystals
        acorns feathers letters stamps nutshells rings gems crowns keys bells
        """,
    "star": "stars moon clouds fireflies lanterns planets",
    "prize": "ribbon medal cup badge rosette crown trophy certificate sash wreath bouquet",
    "contest": """
        sack_race singing_contest kite_contest pie_contest boat_race egg_race dancing_contest
        spelling_contest pumpkin_contest pet_parade drawing_contest snail_race jumping_contest
        hat_parade
        """,
    "fear": """
        dark thunder attic cellar ladder pond tunnel bridge wind stage waves fog diving_board
        spiders bats basement shadows well crowd dentist tall_slide bees
        """,
    "dish": "soup stew porridge pancakes noodles pie beans chowder pudding stuffing",
    "material_verb": "glue sew tie nail tape paste patch mend clamp stitch bind hammer screw",
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


# The traits never change from story to story: whoever reads enough knows that Nora's goat is called Biscuit.
CHILDREN = _people(
    "pet petname color home aunt",
    """
    Nora   she goat Biscuit    blue      the_mill                  Aunt_Posy
    Tess   she cat Pepper      red       the_lighthouse            Aunt_Greta
    Lila   she puppy Waffles   green     a_cottage_by_the_pond     Aunt_Flora
    Mina   she duck Captain    yellow    the_bakery                Aunt_Bea
    Ruby   she pony Clover     purple    a_house_on_the_hill       Aunt_Winnie
    Hazel  she rabbit Button   orange    a_boat_on_the_river       Aunt_Odette
    Ivy    she parrot Noodle   pink      the_farm                  Aunt_Maud
    Clara  she hen Duchess     white     a_cabin_in_the_forest     Aunt_Sal
    Maya   she kitten Smudge   brown     the_schoolhouse           Aunt_Tilda
    Elsie  she lamb Cotton     gray      a_wagon_by_the_orchard    Aunt_Pearl
    Poppy  she frog Admiral    violet    a_cottage_by_the_bridge   Aunt_June
    Wren   she tortoise Rocket scarlet   the_old_tower             Aunt_Mabel
    Daisy  she donkey Thistle  turquoise a_hut_near_the_beach      Aunt_Cora
    Anya   she goose Marigold  lilac     a_house_with_a_blue_door  Aunt_Vera
    Freya  she hamster Pickle  crimson   the_inn                   Aunt_Dot
    Zara   she crow Inky       amber     the_toy_shop              Aunt_Lottie
    Priya  she spaniel Toffee  emerald   a_house_by_the_market     Aunt_Meena
    Opal   she pigeon Postman  silver    the_clock_tower           Aunt_Agnes
    Bella  she calf Blossom    copper    the_dairy                 Aunt_Rosie
    Juno   she mouse Crumb     golden    a_flat_above_the_library  Aunt_Hattie
    Ben    he  terrier Scamp   blue      the_ferry_house           Aunt_Nell
    Tom    he  snail Lightning red       the_greenhouse            Aunt_Polly
    Finn   he  otter Ripple    green     a_cabin_by_the_lake       Aunt_Isla
    Leo    he  cat Mustard     yellow    the_tall_house            Aunt_Carmen
    Max    he  piglet Truffle  purple    a_farm_in_the_valley      Aunt_Ida
    Sam    he  hound Bugle     orange    a_house_near_the_station  Aunt_Minnie
    Jack   he  ferret Zigzag   pink      a_hut_on_the_cliff        Aunt_Etta
    Oscar  he  toad Professor  white     the_castle_gatehouse      Aunt_Belle
    Hugo   he  hedgehog Bramble brown    a_cottage_in_the_lane     Aunt_Fern
    Milo   he  robin Cherry    gray      the_windmill              Aunt_Gilda
    Theo   he  turtle Pebble   violet    a_house_on_stilts         Aunt_Coral
    Arlo   he  sheep Bobbin    scarlet   the_weaver's_house        Aunt_Effie
    Felix  he  chick Peanut    turquoise a_barn_by_the_river       Aunt_Olive
    Ravi   he  mule Sultan     lilac     a_house_by_the_square     Aunt_Asha
    Jonah  he  seagull Skipper crimson   a_shack_by_the_harbor     Aunt_Marina
    Otto   he  beagle Mango    amber     the_bicycle_shop          Aunt_Trudy
    Eli    he  owl Judge       emerald   a_cabin_in_the_mountains  Aunt_Edith
    Kofi   he  rooster Trumpet silver    the_pottery               Aunt_Ama
    Ned    he  ox Feather      copper    the_quarry_house          Aunt_Peg
    Gus    he  mole Velvet     golden    a_house_under_the_hill    Aunt_Ruth
    """,
)

VILLAGERS = _people(
    "trade shop",
    """
    Mrs._Plum      she baker       bakery
    Mr._Tibbet     he  cobbler     shoe_shop
    Mrs._Wick      she candlemaker candle_shop
    Mr._Bolt       he  blacksmith  forge
    Miss_Quill     she teacher     schoolhouse
    Captain_Brine  he  fisherman   harbor
    Mrs._Thatch    she farmer      farm
    Mr._Petal      he  florist     flower_shop
    Doctor_Moss    she doctor      clinic
    Mr._Loom       he  weaver      mill
    Mrs._Kettle    she cook        inn
    Mr._Cog        he  clockmaker  clock_shop
    Miss_Page      she librarian   library
    Mr._Plank      he  carpenter   workshop
    Mrs._Comb      she beekeeper   honey_farm
    Mr._Parcel     he  mailman     post_office
    Mrs._Needle    she tailor      dress_shop
    Old_Barley     he  miller      windmill
    Miss_Fiddle    she musician    music_shop
    Mr._Curd       he  cheesemaker dairy
    Mrs._Glaze     she potter      pottery
    Mr._Beacon     he  sailor      lighthouse
    Miss_Thimble   she dressmaker  market
    Mr._Bramble    he  gardener    nursery
    """,
)

# "aunt" stands for the hero's own.
GROWN_UPS = _people("", "Mama she\nPapa he\nGrandma she\nGrandpa he\naunt she")

MEMORY = {
    "thing": "<toy>",
    "adj": "[<thing_adj>|<color>]",
    "place": "<place>",
    "place2": "<place>",
    "spot": "<landmark>",
    "beast": "<beast>",
    "badj": "<animal_adj>",
    "food": "<food>",
    "filling": "<filling>",
    "dish": "<dish>",
    "flower": "<flower>",
    "veg": "<vegetable>",
    "tree": "<tree>",
    "box": "<container>",
    "skill": "<skill>",
    "contest": "<contest>",
    "prize": "<prize>",
    "fear": "<fear>",
    "item": "<household>",
    "room": "<room>",
    "part": "<part>",
    "treasure": "<treasure>",
    "day": "<weekday>",
    "dessert": "[cake|pie|tart|pudding|cobbler|loaf|strudel|crumble|trifle|torte]",
}

RULES = {
    "item": """
        - a~<thing_adj> <household>
        - a~<color> <household>
        - a~<material> <household>
        - <num> <thing_adj> <households>
        - <num> <color> <households>
        """,
    "items": """
        - <item> and <item>
        - <item>, <item>, and <item>
        """,
    "creature": """
        - a~<animal_adj> <animal>
        - a~<animal_adj> <color> <animal>
        - <num> <animal_adj> <animals>
        """,
    "snack": """
        - a~<food_adj> <food>
        - <num> <food_adj> <foods>
        - a~<food_adj> <filling> [muffin|tart|bun|cake|pie|scone|roll]
        - a [cup|mug|jug|flask|bowl] of <drink>
        """,
    "sight": """
        - a~<place_adj> <landmark>
        - a~<place_adj> <tree> tree
        - a [row|patch|bunch|ring|carpet] of <flower>
        - a~<color> <landmark>
        """,
    "like": """
        - like a~<animal_adj> <animal>
        - like <num> <animal_adj> <animals>
        - like a~<material> <household>
        """,
    "as": """
        - as [quiet|busy|quick|happy|slow|proud|bold|nimble|gentle|careful|hungry] as a~<animal>
        - as [bright|round|big|light|plain|heavy|small|soft|hard] as a~<thing_adj> <household>
        """,
    "where": """
        - [under|behind|beside|near|beneath|next to] <sight>
        - between <sight> and <sight>
        - [inside|under|behind] a~<thing_adj> <household>
        """,
    "when": """
        - One <weather> <daypart>
        - One <weather> <weekday>
        - One <weather> <daypart> in <month>
        - On a~<weather> <weekday> in <month>
        - On the <ordinal> <weekday> of [January|March|April|May|June|July|September|October|November]
        - Early on <weekday>
        - After [breakfast|lunch|supper|school|a long nap] on <weekday>
        """,
    "noises": """
        - <noise>! <noise>!
        - <noise>, <noise>, <noise>!
        """,
    "pet": """
        - {hero.his} {hero.pet}, {hero.petname},
        - {hero.petname} the {hero.pet}
        """,
    "open": """
        - <when>, {hero} and {hero.his} {hero.pet}, {hero.petname}, <went> to the <place_adj> {place}.
        - {hero} lived in {hero.home} with a~{hero.pet} called {hero.petname}. <when>, the two of them <went> to
          the <place_adj> {place} <like>.
        - <when>, the {place} smelled of <smell> and <smell>. {hero} <went> there with <items>.
        - There was once a~<kid_adj>, <kid_adj> {hero.kid} called {hero}, who [loved|enjoyed|was fond of] <hobby>
          and <hobby>. <when>, {hero.he} <went> to the {place}.
        - <when>, clouds shaped like <animals> and <households> [drifted|sailed|rolled|floated] over the {place}.
          {hero} [watched|counted|painted|waved at] them with {hero.petname} the {hero.pet}.
        - {hero} was a~<kid_adj> {hero.kid} who lived in {hero.home}. {hero.He} [liked|adored|loved] <hobby>,
          <snack>, and anything {hero.color}. <when>, {hero.he} [was|sat|played] by the <place_adj> {place}.
        - <noises> went the <household> by the {place}. {hero} [sat up|looked up|stopped <hobby>|spun around]
          <like>. It was a~<weather> <daypart> in <month>.
        - <when>, {hero} put on a~<thing_adj> <color> [coat|hat|scarf|cape|sweater|shirt|jacket] and <went> to the
          {place}, past <sight> and <sight>.
        """,
    "walk": """
        - On the way {hero.he} passed <creature>, <creature>, and <sight>.
        - {hero.He} <went> past <sight> and <went> around <sight>.
        - They met <creature> carrying <item>, and <creature> eating <snack>.
        - The path led by <sight>, where <creature> [sat|slept|waved|bowed|dozed] <where>.
        - The air smelled of <smell>, <smell>, and <smell>.
        - {hero.petname} <went> ahead <like>, sniffing at <items>.
        - Far away, <creature> [called|hummed|sang|snored] <adv> to <creature>.
        """,
    "snacks": """
        - They [shared|ate|nibbled|tasted] <snack> and <snack> by <sight>.
        - {grown} [brought|made|carried out|handed around] <snack>, <snack>, and a~<thing_adj> plate of <foods>.
        - There was <snack> for {hero}, and <snack> for {hero.petname}.
        - Supper was {dish} with <vegetable>, and then <snack>.
        """,
    "tag": """
        - <said> {hero} <adv>
        - <said> {hero}, holding <item>
        - <said> {hero}, hopping <like>
        - {hero} <said>
        """,
    "ftag": """
        - <said> {friend} <adv>
        - <said> {friend}, [nodding|frowning|blinking|grinning|pointing at <item>]
        - {friend} <said>
        """,
    "gtag": """
        - <said> {grown} <adv>
        - <said> {grown}, [putting down|picking up|polishing|folding|mending] <item>
        - {grown} <said>
        """,
    "dream": """
        - That night {hero} dreamed of <creature> and <creature> [dancing|racing|sailing|singing|marching] <where>.
        - That night {hero} dreamed of <num> <color> <animals> with <thing_adj> <households>.
        - Above {hero.home}, the <star> shone [on <sight>|<like>|<adv>|<as>].
        - Then {hero} and {hero.petname} <went> home, past <creature> and <sight>.
        - {hero.petname} curled up beside <item> and snored <like>.
        - And from that <weekday> on, {hero} [kept|hung|drew|told stories about] <item> <where>.
        """,
    "felt": """
        - felt <as>
        - was <good> and <good>
        - felt <good>, <good>, and a little <bad>
        """,
    "felt_bad": """
        - felt <bad> and <bad>
        - was <bad>, <like>
        - grew <bad> and sat down <where>
        """,
}

_BREAK = ""

PLOTS = {
    "lost": (
        """
        - <open> In {hero.his} {box} was {hero.his} {adj} {thing}, a present from {grown}.
        - <when>, {hero} took {hero.his} {adj} {thing} to the <place_adj> {place}. {grown} had [bought|made|found]
          it <where>.
        """,
        """
        - {hero.He} showed it to <creature> and to <creature>, and then {hero.he} stopped to watch <creature>.
        - All <daypart> {hero.he} played <where>, until a~<animal_adj> <animal> <went> by and made {hero.him} jump.
        - There was so much to see: <items>, and even <creature> <where>.
        """,
        """
        - But when {hero.he} looked down, the {thing} was gone! {hero} <felt_bad>.
        - Then {hero.he} reached for the {thing}, and it was not there. "<wow>! My {adj} {thing}!" <tag>.
        - <noises> Something fell, and soon the {thing} was nowhere to be seen. {hero} <felt_bad>.
        """,
        _BREAK,
        """
        - {hero} looked <where>, but found only <items>.
        - {hero.He} searched <where> and <where>. There was nothing but <item>.
        - {hero.He} asked <creature>. It only [blinked|yawned|shrugged|sneezed] and <went> off with <item>.
        - "Has anyone seen a~{thing}?" asked {hero} <adv>. ^<creature> had seen <items>, but no {thing}.
        """,
        """
        - "Think <adv>," <gtag>. "Where were you when you saw <creature>?"
        - "<wow>, let us look together," <ftag>. {friend} had brought {friend.his} {friend.pet}, {friend.petname}.
        - "<wow>, do not cry," <said> {villager} the {villager.trade}. "Things like to hide <where>."
        - <walk>
        """,
        """
        - Just then {hero.petname} <went> in circles around <sight>. There, <where>, lay the {adj} {thing}!
        - {hero.petname} [tugged|pulled|pushed] at {hero.his} sleeve and led {hero.him} to <sight>. There was the
          {thing}, <as>.
        - At last something {adj} [gleamed|winked|shone|peeped out] <where>. It was the {thing}, and <creature> was
          asleep on it.
        """,
        _BREAK,
        """
        - "Thank you, {hero.petname}," <tag>. {hero} <felt>.
        - {hero} hugged {hero.petname} and <felt>.
        - <snacks>
        """,
        """
        - From then on {hero} kept the {thing} in a~<thing_adj> <container>. <dream>
        - {hero} tied the {thing} to {hero.his} [belt|wrist|coat|bag] with <color> [string|ribbon|yarn|thread].
          Whoever looks <adv> will find, {grown} liked to say. <dream>
        - {hero} had learned to look after {hero.his} {adj} {thing}, <adv> and <adv>. <dream>
        """,
    ),
    "sharing": (
        """
        - <open>
        """,
        """
        - {friend} came along with {friend.his} {friend.pet}, {friend.petname}. {friend.He} had forgotten
          {friend.his} lunch and looked <bad> and <bad>.
        - There sat {friend} <where>, with nothing to eat. Even {friend.petname} the {friend.pet} looked <bad>.
        - {hero} had just one {filling} {food}, and it smelled of <smell>. Then {friend} came by and looked <bad>.
        """,
        """
        - "That is the last {filling} {food}," thought {hero}. "I could hide it <where>."
        - {hero} held {hero.his} {filling} {food} tight, <like>, and <felt_bad>.
        - "May I have a bite of your {filling} {food}?" asked {friend} <adv>. {hero} shook {hero.his} head and
          <went> behind <sight>.
        """,
        _BREAK,
        """
        - From <sight>, {hero} saw <creature> giving half of <snack> to <creature>.
        - Then {hero} remembered the <weekday> when {friend} had given {hero.him} <item> and <snack>.
        - But alone <where> the {food} tasted like <material> and <smell>, and {hero} <felt_bad>.
        - ^<creature> came by, carrying <snack> for <creature>.
        """,
        """
        - {hero} cut the {food} with a~<thing_adj> <household>. "<wow>! Half for you," <tag>.
        - "<wow>, I am sorry," <tag>. "The {filling} {food} is big enough for two."
        - So {hero} <went> back and put the {food} on a~<color> plate. "Let us share," <tag>.
        """,
        """
        - {friend} found <snack> in {friend.his} pocket and shared it, too. {hero.petname} and {friend.petname} got
          the crumbs.
        - "<wow>!" <ftag>. "Then you must have half of my <filling> <food>, and one of these <food_adj> <foods>."
        - {grown} saw it and brought them <snack>, <snack>, and <item>.
        """,
        _BREAK,
        """
        - They ate <where> and watched <creature> and <creature>. {hero} <felt>.
        - They sat side by side, <as>, and talked about <hobby>, <hobby>, and <animals>.
        """,
        """
        - A shared {food} [tastes|is] twice as <food_adj>. <dream>
        - "Sharing makes a small {food} big," said {grown} <adv>. <dream>
        - After that, {hero} and {friend} shared every {food} on <weekday>, and <item> as well. <dream>
        """,
    ),
    "fear": (
        """
        - {hero} was a~<kid_adj> {hero.kid} who was not afraid of <animals> or <animals>. But {hero.he} was afraid of
          the {fear}.
        - <open> {hero.He} was <good>, except for one thing: {hero.he} was afraid of the {fear}.
        """,
        """
        - "When I think of the {fear}, my knees shake <like>," <tag>.
        - Each <weekday> {hero.he} hid <where> and held <item> until it was over.
        - {hero.petname} the {hero.pet} was not afraid. {hero.petname} chased <animals> and <animals> all <daypart>.
        """,
        """
        - <when>, {friend} lost <item> just there, and somebody had to [fetch|save|find|rescue] it.
        - <when>, a~<animal_adj> <animal> was stuck just there, calling <adv>. "^<noise>! <noise>!"
        - <when>, {grown} needed <item> and <item> from there, and {grown} had hurt a [toe|foot|knee|thumb|finger].
        """,
        _BREAK,
        """
        - "I was once afraid of <animals>," <gtag>. "I [hummed|counted|sang|whistled], and I took <item> along."
        - "Being brave is being <bad> and <bad> and going all the same," <gtag>.
        - "Take {hero.petname} and a~<thing_adj> <color> <household>," <gtag>. "Go <adv>, step by step."
        """,
        """
        - {hero} took <item> in one hand and <item> in the other. {hero.He} <went> <like>, and {hero.petname} <went>
          behind.
        - {hero.He} counted to <num>, hummed <adv>, and thought of <creature> eating <snack>.
        - {hero.He} put on a~<color> hat, whispered "<noise>, <noise>," and <went> ahead <like>.
        """,
        """
        - What a surprise! There was only <creature> <where>, and it looked <bad>, too.
        - {hero.His} heart went thump, but nothing happened. {hero.He} saw <creature>, <item>, and <sight>.
        - One step, <num> steps, <num> steps more. The {fear} seemed no worse than <item>.
        """,
        _BREAK,
        """
        - "<wow>! I did it!" <tag>. {hero} <felt>.
        - <snacks>
        - {grown} gave {hero.him} <snack> and <item> for being so <good>.
        """,
        """
        - The {fear} never seemed so bad again. <dream>
        - "You were <bad>, and you were brave," said {grown} <adv>. <dream>
        - Now when the <animals> shiver at the {fear}, {hero} [holds|strokes|hugs] them <adv>. <dream>
        """,
    ),
    "animal": (
        """
        - <open>
        """,
        """
        - <walk>
        - There {hero.he} heard a~<bad> little voice. <noises>
        - Then {hero.petname} stopped, <as>, and stared at <sight>.
        """,
        """
        - A~{badj} {beast} was caught [in|under|behind] a~<material> <household>, and it looked <bad>.
        - Near <sight> lay a~{badj} {beast}. It had hurt its [foot|nose|tail|side|back] on <item>.
        - A~{badj} {beast} had lost its way. It had been looking for <sight> since <weekday>.
        - A~{badj} {beast} sat [crying|shivering|sighing] <where>, for <creature> had taken its <food>.
        """,
        _BREAK,
        """
        - "<wow>, little {beast}," <tag>. "I will help you."
        - "Do not be <bad>, {beast}," <tag>. "{hero.petname} and I are your friends."
        - "Poor {beast}!" <tag>. "You must be <bad> and <bad>."
        """,
        """
        - {hero.He} used <item> and <item>, and {hero.petname} pulled <adv>.
        - {hero.He} gave it <snack>, made a bed of <flower> and [moss|straw|leaves|wool] in a~<color> <container>, and
          sang <adv>.
        - {villager} the {villager.trade} came by with <item> and showed {hero.him} how to [hold|wrap|lift|warm] it
          <adv>.
        - They carried the {beast} past <sight> and <sight> in a~<thing_adj> <container>.
        """,
        """
        - By <weekday> the {beast} was <good> again. It <went> away <like>.
        - Soon the {beast} was <good>. It bowed <adv> and ran off <where>.
        - At <daypart>, its mother came with <num> <animal_adj> sisters. The {beast} was <good>!
        """,
        _BREAK,
        """
        - One <weather> <daypart>, {hero} found <items> by the door. Nearby sat the {badj} {beast}, looking <good>.
        - The next <weekday>, {hero} lost {hero.his} way in the fog. Who came but the {badj} {beast}, leading
          {hero.him} home <adv>?
        - In <month> the {beast} came back with <snack> and <items> for {hero}.
        """,
        """
        - A kindness comes back, even from a~{beast}. <dream>
        - {hero} and the {badj} {beast} stayed friends. <dream>
        - "No friend is too small," said {hero} <adv>, and the {beast} nodded. <dream>
        """,
    ),
    "weather": (
        """
        - <open>
        """,
        """
        - But then the wind grew <bad>, and the sky turned <color> and <color>. <noises>
        - All at once [rain|snow|hail|sleet] fell <like>, and <creature> ran to hide <where>.
        - Suddenly the fog was so thick that {hero.he} could not see <sight> or <sight>. {hero.He} <felt_bad>.
        """,
        """
        - The wind took <item>, <item>, and {hero.his} {adj} {thing}.
        - "<wow>! My {adj} {thing} will be ruined!" <tag>, and {hero.he} hid it <where>.
        - {hero} held {hero.his} {adj} {thing} tight and <went> to <sight>.
        """,
        _BREAK,
        """
        - Under <sight> sat {friend}, {friend.petname} the {friend.pet}, and <creature>. All of them were <bad>.
        - In the {room} of {hero.home} sat {friend} and {friend.petname}, wrapped in a~<thing_adj> <color> blanket.
        - {villager} the {villager.trade} opened the door of the {villager.shop}. "Come in <adv>," <said> {villager}.
          Inside were {friend} and <creature>.
        """,
        """
        - "<wow>! Let us tell stories," <ftag>. The first was about <creature> and <item>.
        - They played with the {thing} and drew <animals> on a~<thing_adj> <household>.
        - "What can we do until the sun comes?" <ftag>. They counted <animals> and built a tent of <items>.
        - They had <snack> and <snack>, and {hero} told about <creature> who loved <hobby>.
        """,
        """
        - <noises> said the roof. "<noise>, <noise>," <tag>, and everyone laughed <adv>.
        - {friend.petname} sneezed <like>. {hero.petname} fell off <item>. How they laughed!
        - {hero} <felt> now, for friends make even a~<weather> <daypart> short.
        """,
        _BREAK,
        """
        - When it was over, the {place} shone <as>. There was <sight>, all wet, and <creature> in a puddle.
        - At last the sun came out. A rainbow stood over the {place}, <color>, <color>, and <color>.
        - By <daypart> the sky was <color> again, and <creature> danced <where>.
        """,
        """
        - {hero} let {friend} play with the {thing} until supper. <dream>
        - "I hope it will be <weather> again on <weekday>," said {hero} <adv>, holding the {thing}. <dream>
        - The {adj} {thing} was dry and safe, and {hero} was <good>. <dream>
        """,
    ),
    "baking": (
        """
        - <when>, {grown} wanted to bake a~{filling} {dessert} for {villager} the {villager.trade}, who was <bad>.
        - "<wow>! It is {day}," <gtag>. "Time to bake our {filling} {dessert}!" {hero} put on a~<thing_adj> <color>
          apron.
        - {hero} loved <hobby>, <foods>, and the <color> kitchen in {hero.home}. <when>, {hero.he} wished to bake
          a~{filling} {dessert} for {grown}.
        """,
        """
        - They needed <ingredient>, <ingredient>, <ingredient>, and <num> spoons of <ingredient>.
        - In the pantry stood <ingredient> in a~<material> jar, <ingredient> in a~<color> box, and <item>.
        - {hero} fetched <ingredient> and <ingredient> from {villager} at the {villager.shop}, and passed <creature> on
          the way.
        """,
        """
        - {hero.He} stirred <adv> with a~<thing_adj> spoon. {hero.petname} licked up the <ingredient>.
        - {hero} mixed the <ingredient> <adv>, and {hero.petname} got <ingredient> on {hero.petname}'s nose.
        - "Stir it <adv>, <like>," <gtag>. So {hero} did, humming about <animals>.
        """,
        _BREAK,
        """
        - But oh! In place of <ingredient>, {hero} had put in <ingredient>. It smelled of <smell> and <smell>.
        - Just then <creature> <went> in. <noises> Down went the <ingredient>, <item>, and the bowl!
        - {hero} <went> out to look at <creature> and forgot the oven. Soon the kitchen smelled of smoke and <smell>.
        """,
        """
        - {hero} <felt_bad>. "Our {dessert} is spoiled!" <tag>.
        - "<wow>, what have I done?" <tag>. The {dessert} was flat <as>.
        - {hero.His} eyes filled with tears. The {dessert} looked like <item>.
        """,
        """
        - "Every cook burns a~<food> now and then," <gtag>. "Let us begin again, <adv> this time."
        - "I once made <food> with <ingredient> and <smell>," <gtag>. "Even the <animals> ran away!"
        - "Then we mix again," <gtag>. This time {hero} read the recipe <adv>: <ingredient>, <ingredient>, and a
          pinch of <ingredient>.
        """,
        _BREAK,
        """
        - Soon a~<food_adj>, <food_adj> {dessert} stood on the table. It smelled of {filling}, <smell>, and <smell>.
        - Out came the new {filling} {dessert}, <as>. They trimmed it with <flower> and <ingredient>.
        - After <num> songs about <animals>, the {filling} {dessert} was <food_adj>, <food_adj>, and ready.
        """,
        """
        - "<wow>! The best {dessert} in the village," said {villager} <adv>. {hero} <felt>. <dream>
        - They ate the {filling} {dessert} with <creature> watching, and {hero} <felt>. <dream>
        - A spoiled {dessert} is only half a lesson; the next {dessert} is the other half. <dream>
        """,
    ),
    "mending": (
        """
        - <open> {hero.His} dearest toy was a~{adj} {thing}, once given to {hero.him} by {grown}.
        - {grown} had a~{adj} {thing} that was older than {hero}. It stood in the {room} beside <items>.
        """,
        """
        - <when>, {hero.petname} chased <creature> through the {room}. <noises> The {part} of the {thing} broke off.
        - <when>, {hero} dropped the {thing} on <item>. <noises> Now the {part} was broken.
        - <when>, {hero} sat down on the {thing} <adv>. Snap went the {part}!
        """,
        """
        - {hero} <felt_bad>. "Can it be mended?" <tag>.
        - "<wow>! The poor {thing}!" <tag>. {hero} wrapped it in a~<color> [cloth|towel|scarf|sock].
        - "Throw it away," said <creature> <where>. But {hero} shook {hero.his} head <adv>.
        """,
        _BREAK,
        """
        - First {hero.he} tried <glue>, but the {part} fell off by <daypart>.
        - {hero.He} tried <glue>, <glue>, and even <ingredient>. The {part} only wobbled <like>.
        - {friend} brought <glue> and <item>, but that was no help.
        """,
        """
        - So {hero} <went> to {villager} the {villager.trade}, past <sight> and <creature>.
        - So they took it to the {villager.shop}, where {villager} the {villager.trade} was mending <item> for
          <creature>.
        """,
        """
        - "First we <material_verb> it, and then we <material_verb> it," <said> {villager} <adv>. "Hand me <item>,
          please."
        - {villager} looked at the {part} through <item>. "We need <glue>, <glue>, and a <good> helper," said
          {villager} <adv>.
        - "I will show you how," <said> {villager}. {hero} held <item>, and {villager} used <glue> and <glue>.
        """,
        """
        - It took until <weekday>. {hero} worked <adv> and <adv>, <as>.
        - Bit by bit, <adv>, the {part} went back in its place.
        - "[Higher|Lower|Tighter|Slower|Faster|Softer|Straighter]!" <said> {villager}. {hero.petname} fetched <item>
          and <item>.
        """,
        _BREAK,
        """
        - At last the {thing} was whole. The mended {part} was <color> now, and {hero} liked it better than before.
        - The {adj} {thing} was whole again, and it smelled of <smell>. {hero} <felt>.
        - {hero} paid {villager} with <snack> and <item>, and <went> home <like> with the {thing}.
        """,
        """
        - What is mended <adv> is loved twice. <dream>
        - Now {hero} could mend things, too: <item>, <item>, and a~<color> {thing}. <dream>
        - "The {thing} has a story now," said {grown} <adv>. <dream>
        """,
    ),
    "surprise": (
        """
        - <when>, it was nearly the birthday of {friend}, and {hero} had a secret.
        - {day} was the birthday of {friend}. "<wow>! I will make a surprise," <tag>.
        - <open> But {hero.his} head was full of {friend}, whose birthday was on {day}.
        """,
        """
        - {friend} loved <hobby>, <animals>, and everything {friend.color}. What would be a good present?
        - {friend} lived in {friend.home} with a~{friend.pet} called {friend.petname}. {friend.He} had always
          wished for a~{thing}.
        - "{friend} likes {friend.color} things," <gtag>. "Those, and <animals>."
        """,
        """
        - {hero} had only <num> coins, so {hero.he} made a~{friend.color} {thing} from <item> and <glue>.
        - At the shop a~{friend.color} {thing} lay between <item> and <item>. It cost <num> pennies and <snack>.
        - With <item>, <item>, and some <glue>, {hero} built a~{friend.color} {thing}. It took until <weekday>.
        """,
        _BREAK,
        """
        - {villager} the {villager.trade} baked a~<filling> cake with <ingredient>, and <creature> hung up lanterns.
        - {grown} hung <color> and <color> paper on <sight>, and {hero.petname} guarded the <foods>.
        - They put <flower> on the table, with <snack>, <snack>, and <item> for the games.
        """,
        """
        - "What are you doing?" <ftag>. "^<hobby> with <animals>," <tag>, hiding the {thing} <where>.
        - "Why does nobody play with me?" asked {friend}. {friend.He} felt <bad> and <went> to the {place} to talk to
          <creature>.
        - {friend} came by too early! {hero} threw a~<color> blanket over <items> and [whistled|coughed|yawned] <adv>.
        """,
        """
        - Then the lamp was lit. "Surprise!" <said> everyone: {grown}, {villager}, and <creature>.
        - "Close your eyes, {friend}," <tag>. <noises> Out jumped {grown} and <num> <color> <animals>.
        - {friend} opened the door <adv>. "Surprise!" they <said>, and {friend.petname} jumped <like>.
        """,
        _BREAK,
        """
        - "<wow>! A~{friend.color} {thing}!" <ftag>. {friend} was <good> and <good>.
        - {friend} unwrapped the {thing} <adv> and hugged {hero} <like>.
        """,
        """
        - They ate <snack> and <snack> until <daypart>.
        - They played with the {thing}, and {hero.petname} danced with {friend.petname} <where>.
        - Everyone sang about <animals>, and <creature> fell asleep on <item>.
        """,
        """
        - The best part of a {friend.color} {thing} is giving it away, thought {hero}. <dream>
        - "I thought you had forgotten me," said {friend} <adv>, holding the {thing}. <dream>
        - {friend} took the {thing} home to {friend.home}. <dream>
        """,
    ),
    "quarrel": (
        """
        - <open> There {hero.he} met {friend} with {friend.his} {friend.pet}, {friend.petname}.
        - {hero} and {friend} were best friends. They shared <snack>, a love of <hobby>, and <item>.
        """,
        """
        - <when>, they built a tower of <items> by the {place}.
        - They found a~{adj} {thing} <where>. Both of them reached for it at once.
        - They wanted to play a game. "Let us be <animals>!" <tag>. "No, <animals> with <items>!" <ftag>.
        """,
        """
        - "The {thing} is mine," <tag>. "No, mine!" <ftag>. They pulled at the {adj} {thing} <like>.
        - "I saw that {adj} {thing} first!" <tag>. "You always get the {thing}!" <ftag>.
        - Then {friend} stepped on {hero}'s {adj} {thing}. "<noise>!" it went. "You did that <adv>!" <tag>.
        """,
        _BREAK,
        """
        - {hero} <went> home <adv>, and {friend} <went> off to {friend.home}. Both were <bad> and <bad>.
        - {hero} sat <where> and <felt_bad>. {friend} sat <where> and was <bad>, too.
        - All <daypart> {hero} played alone with <item> and <item>. It was dull <as>.
        """,
        """
        - "A friend is worth more than a~{thing}," <gtag>. "Say so <adv>."
        - "^<animals> quarrel, too," <gtag>. "Then one of them brings <snack>, and all is well."
        - {hero.petname} would not eat <snack> or <snack>. {hero.petname} missed {friend.petname}.
        - {hero} watched <creature> and <creature> sharing <snack>, and {hero.he} thought <adv> of {friend}.
        """,
        """
        - On <weekday>, {hero} wrapped up <snack> and <item> and <went> past <sight> to {friend.home}.
        - On <weekday>, {hero} picked <flower> and <flower>, tied them with <color> ribbon, and <went> to {friend}.
        - By <sight> they met. {friend} had <snack> in {friend.his} hand. {hero} held <item>.
        """,
        _BREAK,
        """
        - "I am sorry about the {thing}," <tag>. "I am sorry, too," <ftag>.
        - "You may have the {thing} until <weekday>," <tag>. "And then it is your turn," <ftag>.
        - Both said "sorry" at once, and then they laughed <like>. The {thing} lay between them.
        """,
        """
        - <snacks>
        - Soon they were <hobby> again, <good> and <good>, with <creature> looking on.
        - {friend.petname} and {hero.petname} <went> around and around <sight>.
        """,
        """
        - After that the {adj} {thing} belonged to both {hero} and {friend}. <dream>
        - A quarrel is a~<weather> day, but friends are the whole <month>. <dream>
        - They hung the {thing} <where>, where both could see it. <dream>
        """,
    ),
    "lying": (
        """
        - <when>, {hero} played ball in the {room}, though {grown} had told {hero.him} to play by the {place}.
        - In the {room} of {hero.home} stood a~{adj} {item}. {grown} loved it, for it had once been a present from {villager} the {villager.trade}.
        """,
        """
        - {hero} threw <item> to {hero.petname} <adv>. <noises> The {adj} {item} lay on the floor.
        - {hero.He} jumped <like>, slipped on <snack>, and fell against the {adj} {item}. <noises>
        - {hero.He} only wanted to look at the {adj} {item} <adv>. <noises> Then it was broken.
        """,
        """
        - {hero} <felt_bad>. {hero.He} hid the pieces <where>.
        - {hero} swept up the pieces with <item> and put them in a~<thing_adj> <container>.
        - "<wow>! Nobody must know," thought {hero}, and {hero.he} put a~<color> cloth over the {item}.
        """,
        _BREAK,
        """
        - "Who broke my {item}?" asked {grown} <adv>. "It was {hero.petname}!" <tag>.
        - "Where is my {adj} {item}?" asked {grown}. "^<creature> took it," <tag>.
        - "<wow>! What happened to my {item}?" <gtag>. "It was <creature>. I saw it <where>," <tag>.
        """,
        """
        - So {hero.petname} had to stay <where> without <snack>, looking <bad> and <bad>.
        - {grown} sent {hero.petname} out to sleep <where>, beside <item>. {hero.petname} looked back <adv>.
        - {villager} the {villager.trade} came to look for tracks with <item>, and {grown} said sorry <adv> for the
          trouble.
        """,
        """
        - At supper {hero} could not eat {hero.his} <food> or even the <foods>. The lie felt like <item> in
          {hero.his} tummy.
        - In bed {hero} counted <num> <animals>, but sleep would not come. The lie sat on {hero.him} <like>.
        - Whatever {hero} did, <hobby> or <hobby>, the lie <went> behind {hero.him} <like>.
        """,
        _BREAK,
        """
        - At last {hero} <went> to {grown}. "I broke the {item}," <tag>. "I am sorry that I told a lie."
        - "{hero.petname} did nothing," <tag>. "I broke the {adj} {item}, and then I was <bad> and <bad>."
        - {hero} brought the pieces in a~<thing_adj> <container>. "It was I who broke it," <tag>.
        """,
        """
        - "Thank you for the truth," <gtag>. "A~{item} can be mended with <glue>. Trust is harder."
        - "I am <bad> about the {item}," <gtag>, "but I am <good> that you told me."
        - {grown} was quiet for a while. Then {grown.he} hugged {hero} <adv> and fetched <glue> and <item>.
        """,
        """
        - {hero} gave {hero.petname} <snack> and <felt>. <dream>
        - They mended the {adj} {item} with <glue> and <glue>, and {hero} never blamed {hero.petname} again. <dream>
        - The truth is <as>, and a lie is heavier than <item>. <dream>
        """,
    ),
    "journey": (
        """
        - <when>, {grown} gave {hero} a~{adj} {thing}. "Please take it to {villager} the {villager.trade}," <gtag>.
        - "{villager} the {villager.trade} left a~{adj} {thing} here," <gtag> one <weather> <daypart>. "Who will take
          it to the {villager.shop}?"
        """,
        """
        - {hero} packed <snack>, <snack>, and <item> in a~<color> bag. {hero.petname} carried <item>.
        - "We will!" <tag>. {hero.petname} the {hero.pet} hopped <like>, and off they <went>.
        - {hero} put the {thing} in a~<thing_adj> <container>, waved <adv>, and <went> off with {hero.petname}.
        """,
        _BREAK,
        """
        - First they came to the <place_adj> {place}. There <creature> wanted <snack> before it let them by.
        - First they came to the {place}, where <creature> and <creature> were <hobby> <where>.
        - At the <place_adj> {place} they [rested|stopped|sat] <where> and ate <snack>.
        """,
        """
        - Next came the {place2}, <place_adj> and <place_adj>. <noises> A~<animal_adj> <animal> wanted the {thing}!
        - Then they <went> by the <place_adj> {place2}. {hero} lost <item> there and <felt_bad>.
        - At the {place2} the road split. One sign showed <item>, and the other showed <creature>.
        """,
        """
        - "Which way, {hero.petname}?" <tag>. {hero.petname} sniffed at <sight> and <went> left.
        - "<wow>, may we pass?" <tag>. "If you tell me about <hobby> and <animals>," <said> <creature>.
        - Some <animal_adj> <animals> helped them over <sight>, and {hero} gave them <snack>.
        - The {thing} nearly fell into a~<place_adj> ditch, but {hero.petname} caught it <adv>.
        """,
        _BREAK,
        """
        - At <daypart> they reached the {villager.shop}. {villager} was [polishing|mending|painting|washing|admiring|selling] <item>.
        - At last they saw the {villager.shop}, with <flower> by the door and <creature> on the roof.
        """,
        """
        - "<wow>! My {adj} {thing}!" <said> {villager} <adv>. "I missed it <adv> since <weekday>."
        - {villager} took the {thing} <adv>. "You walked so far, past the {place} and the {place2}?"
        """,
        """
        - {villager.He} gave them <snack>, <snack>, and <item> for the way home.
        - For thanks {villager.he} gave {hero} <item>, and {hero.petname} got <snack>.
        - They warmed their toes <where>, drank <drink>, and {hero} <felt>.
        """,
        """
        - "From the {place} to the {place2}, we were <good>," {hero} told {grown}. <dream>
        - A long road is made of short steps, past <sight> and past <sight>. <dream>
        - "And was the {thing} heavy?" asked {grown}. "Only <as>," said {hero}. <dream>
        """,
    ),
    "garden": (
        """
        - <open> {grown} gave {hero.him} a bag of seeds for {veg}.
        - <when>, {hero} found <num> <color> seeds <where>. "They are seeds for {veg}," <gtag>.
        - {hero} wanted a garden with {veg} and {flower}, and maybe <item> for the birds.
        """,
        """
        - {hero.He} dug with a~<thing_adj> <household>, and {hero.petname} dug, too, <like>.
        - Behind {hero.home}, beside <sight>, {hero.he} dug a bed <as>.
        - {hero.He} planted {veg} in a~<color> <container>, with <flower> and <flower> around them.
        """,
        """
        - On <weekday> {hero.he} looked. Nothing! On <weekday> {hero.he} looked again. There was only <creature>.
        - {hero.He} watered them from a~<thing_adj> <household> and sang <adv> about <animals>.
        - "Grow!" <tag>. But the {veg} did not grow, and {hero} <felt_bad>.
        """,
        _BREAK,
        """
        - "You must wait <adv>," <gtag>. "Your {veg} need sun, water, and <weather> days."
        - "Seeds are <as>," <gtag>. "You cannot hurry {veg}."
        - {villager} the {villager.trade} looked over the fence. "Give them <item> for shade," <said> {villager},
          "and tell them about <hobby>."
        """,
        """
        - Then <creature> came and nibbled the leaves. "<wow>! Shoo!" <tag>.
        - In <month> came <num> <animal_adj> <animals>, who wanted to eat everything, even <item>.
        - A~<weather> wind blew down <item> and <sight>, but {hero} held the plants <adv>.
        """,
        """
        - {hero} made a scarecrow from <item>, <item>, and {grown}'s <thing_adj> hat.
        - So {hero} planted <flower> beside <sight>, just for them. Then the {veg} were safe.
        - {hero} and {friend} built a fence from <item>, <item>, and <glue>.
        """,
        _BREAK,
        """
        - At last, one <weather> <daypart>, there were {veg}! They were <color>, <food_adj>, and <as>.
        - By <month> the {veg} were <as>. {hero} needed <item> to carry them.
        - First came <num> leaves, then <num> <color> flowers, and then {veg}, <food_adj> and <food_adj>.
        """,
        """
        - They cooked {dish} with {veg}, and {hero} gave some to <creature> and to {friend}.
        - {hero} traded {veg} at the market for <snack>, <item>, and <item>.
        - {hero} <felt>. {hero.petname} sat in the garden <like>.
        """,
        """
        - "Next year I shall plant <vegetable> by the {veg}," said {hero} <adv>. <dream>
        - Good things, like {veg} and <hobby>, need time. <dream>
        - One last seed of the {veg} went into a~<material> box for next <month>. <dream>
        """,
    ),
    "practice": (
        """
        - <when>, {hero} saw <creature> by the {place}, and {friend}, who knew how to {skill} <adv>.
        - {hero} wanted to learn to {skill}. {friend} could do it, and so could <creature> <where>, or so {hero}
          thought.
        - <open> There was {friend}, showing everyone how to {skill}.
        """,
        """
        - "<wow>! I can do that, too," <tag>. {hero.He} tried to {skill}, <like>. <noises>
        - {hero} tried to {skill}, but {hero.he} landed on <item>, and <creature> laughed.
        - {hero} took <item>, closed {hero.his} eyes, and tried to {skill}. It went <like>.
        """,
        """
        - "I shall never learn to {skill}," <tag>. {hero} <felt_bad>.
        - {hero} <felt_bad> and hid <where> with {hero.petname}.
        - "That is hard," <tag>, rubbing {hero.his} [knee|elbow|nose|toe|chin].
        """,
        _BREAK,
        """
        - "I fell <num> times," <ftag>. "Start <adv>, and hold <item> like this."
        - "I learned it from {villager} the {villager.trade}," <ftag>. "{villager.He} said: first <adv>, then <adv>."
        - "When I began, even the <animals> ran away," <ftag>. "Try it with <item>."
        """,
        """
        - On <weekday> {hero} tried <where>. On <weekday> {hero.he} tried <where>.
        - {hero} practiced in the {room}, by <sight>, and at last near the <place_adj> {place2}.
        - Every <daypart> {hero.he} tried <num> times, and {hero.petname} watched <like>.
        """,
        """
        - {hero} fell over <item>, over <creature>, and once into <sight>. But {hero.he} got up <adv>.
        - <noises> It was a little better. <noises> It was better still.
        - {grown} gave {hero.him} <snack> for each try, and <item> to lean on.
        """,
        _BREAK,
        """
        - Then, one <weather> <daypart>, it worked! {hero} could {skill} <as>.
        - In <month>, before {grown}, {friend}, and <creature>, {hero} began to {skill}, <adv> and <adv>.
        - "Look at me!" <tag>. And indeed {hero.he} could {skill}, <adv>, <like>.
        """,
        """
        - {hero} <felt>. {friend} clapped <adv>, and {friend.petname} the {friend.pet} jumped <like>.
        - "<wow>! You are better than I am," <ftag>, and gave {hero.him} <snack>.
        - <snacks>
        """,
        """
        - Now {hero} is teaching <creature> to {skill}. <dream>
        - Nobody can {skill} on the first <weekday>, but anybody can begin. <dream>
        - "Tomorrow I shall learn to <skill>," said {hero} <adv>. <dream>
        """,
    ),
    "contest": (
        """
        - <when>, there was a fair by the {place}, with <items> and a~{contest}. First prize was a~<color> {prize}.
        - <open> There was a sign on <sight>: "Come to the {contest} on {day} and win a~<color> {prize}!"
        """,
        """
        - {hero} wanted the {prize} more than <snack>. {hero.He} trained <adv> every <daypart> with {hero.petname}.
        - "We shall win the {prize}, {hero.petname}!" <tag>. They got ready with <item> and <item>.
        - {friend} wanted to win, too. "My {friend.pet} and I are <good>," <ftag>.
        """,
        """
        - On {day} came everyone: {villager} the {villager.trade}, <creature>, and <creature> with <snack>.
        - {villager} the {villager.trade} was the judge and wore a~<thing_adj> <color> hat. "Ready, steady, go!"
          <said> {villager}.
        - There were <flower>, <foods>, and drums. <noises> The {contest} began.
        """,
        _BREAK,
        """
        - {hero} did well, <like>. Only {friend} was ahead, by <item>.
        - {hero} was [second|third|fourth|fifth] and then first. {hero.His} heart went <noise>, <noise>.
        - {hero} was first of all, and the {prize} was so near that {hero.he} felt <good>.
        """,
        """
        - Then {friend} slipped on <snack> and fell <where>. {friend.He} looked <bad> and <bad>.
        - Then {friend.petname} got caught behind <sight>, and {friend} called for help <adv>.
        - Then a~<animal_adj> <animal> fell into <sight>, and nobody else had seen it.
        """,
        """
        - {hero} looked at the {prize}. Then {hero.he} turned back <adv>. "<wow>, take my hand," <tag>.
        - {hero} stopped. "A~{prize} is only <item>," thought {hero.he}, and <went> to help.
        - "Somebody has to help," <tag>, and {hero.he} <went> back with <item>.
        """,
        _BREAK,
        """
        - So the {prize} went to <creature>, who <went> around the {place} <adv> with it.
        - A~<kid_adj> [girl|boy] with <item> won the {prize}. {hero} clapped <adv>.
        - They were last, after <creature> and <creature>, but they came in together, laughing <like>.
        """,
        """
        - "I have one more {prize}," said {villager} <adv>. "It is <color>, and it is for a <good> heart."
        - {friend} gave {hero} <snack> and <item>. "You are my <color> {prize}," <ftag>.
        - {villager} made {hero} a~{prize} of <flower> and <color> [paper|ribbon|string|yarn].
        """,
        """
        - {hero} hung the {prize} in the {room}, next to <item>. <dream>
        - To help is better than to win a~{contest}, and {hero} <felt>. <dream>
        - "Next <month> we shall win the {contest} together," said {friend} <adv>. <dream>
        """,
    ),
    "noise": (
        """
        - <when>, {hero} woke up. "<noise>, <noise>," said something in the {room}.
        - It was a~<weather> night in {hero.home}. <noises> Something was in the {room}!
        """,
        """
        - "<wow>! Is it a dragon with <items>?" <tag>. {hero.petname} hid <where>.
        - {hero} <felt_bad>. Maybe it was <creature>, or a robber with <item>.
        - {hero.He} held {hero.petname} the {hero.pet} tight and thought of <creature> with <thing_adj> teeth.
        """,
        """
        - {hero} took <item> and <item> and <went> down the stairs <adv>.
        - "I will go and see," <tag>, and {hero.he} put <item> on {hero.his} head.
        - {grown} was asleep, snoring <like>. So {hero} lit a~<color> candle and <went> out <adv>.
        """,
        _BREAK,
        """
        - In the hall there was only <item>. Behind the door were <items>. And there it was again. <noises>
        - The moon was <as>, and the shadows looked like <animals> with <households>.
        - {hero.He} looked <where>, and then <where>. {hero.He} found <item> and <num> <thing_adj> <toys>.
        """,
        """
        - It came from a~{adj} {item}! {hero} lifted the {item} <adv>, with shaking hands.
        - The {adj} {item} moved! It <went> across the floor <like>.
        - Something under the {adj} {item} sneezed.
        """,
        """
        - Inside was a~{badj} {beast} with a~<food_adj> <food> in its mouth.
        - Out came a~{badj} {beast}, looking <bad>. It had only wanted <snack>.
        - And there sat a~{badj} {beast}, who was just as <bad> as {hero}.
        """,
        _BREAK,
        """
        - "<wow>! So it was you, little {beast}!" <tag>. {hero} <felt>.
        - {hero} laughed <adv>. "We thought you were a monster, {beast}!" <tag>.
        - "<noise>," said the {beast} <adv>. "<noise>," <tag>, and both felt <good>.
        """,
        """
        - {hero.He} gave the {beast} <snack> and a bed of <flower> and [wool|straw|leaves|feathers] in a~<container>.
        - They shared <snack> and <snack> by the {item}, and {hero.petname} got some, too.
        - "What is going on here?" <gtag>. Then {grown} saw the {beast}, and laughed <like>.
        """,
        """
        - In the dark a~{beast} can sound like <num> dragons. <dream>
        - Since then the {beast} has lived <where>, and the {adj} {item} is its front door. <dream>
        - "Look first, and be <bad> later," said {grown} <adv>. <dream>
        """,
    ),
}
