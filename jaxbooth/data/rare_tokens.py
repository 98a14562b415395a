"""Rare words for a subject's identifier, from a CLIP vocabulary (Ruiz et al. 2023, section 3.2).

CLIP's byte-pair merges stand in order of frequency, so a high id is a rare piece of text. Rarity alone is not enough:
among the last ten thousand are names, brands, file types and insults, each with a picture attached to it.
"""

import hashlib
import re
from collections.abc import Collection, Mapping

FIRST_RARE_ID = 40_000
_WORD = re.compile(r"([a-z]{2,4})</w>")  # `</w>` marks a piece that ends a word

# Words with a meaning of their own among the 1,557 candidates of CLIP's vocabulary.
_STOP_TEXT = """
abit acct acdc acki aest agro aik aira airy akon alco alek aloo amex anew anin anja aol arif arne arum arvo asad asim
asl assa assn asta atul awk axes ayu ayyy baes bant batt bays bcoz begs belo bess bez bide bind bios bite blob blot blr
bma bmi bnp bobs bode boer bolo boni bons boop bosh bpm brea bryn bsd bund bung bunk buon buss byes byte cabs cair calc
cals capo cava caw ccd ccp cern chev chit chou chum cleo clio clos cmdr cmon cnet cng cns coed conv copd cov coyi cpac
cpi crit croc crt cse csk csm cudi cull cutt daan dany dav davy daz dbs dbz ddos dds deja deng deux devo diem dif dijk
dike dma dmx doge dole domo dori dprk dsd dsp dts dyce dyne ecg eek eels egan egos ehs elba elio emil emir emit emp emt
enos eph esg esq etna eton evie ewan ewe exe exol eyre fad faf fara fawn fay faze fbs fck fdny fdr fema ferg fez fgo
fib fink flax flin flix flor foal fob foes fone fray fret frid fta ftp ftse fue fuzz gabi gaby gaia gasp gato gawd gaye
gbc geez gels geno geri ghat gila gilt gita glas gmbh gog goro grl gsa gums guyz gypt hag haj haji haka hap hawa haya
hays hbcu hcs hdd hein hemi hep hess hew hgtv hibs hina hiya hmv hobo hock hogg hoh homs hoof hooo howl hpv hsv hts
huan huff hula hurd hyd hymn ibc ibis ibs icn ifu igbo ihop imac imc impy indi init inka ioc ipc irc irgc irie ismo
isro itly jace jap japs javi jaye jdm jens jeon jett jfc jig jinx jio jiu jnu joao joni joss juju juli kaka kant kanu
kap kats kea keef keel keri kern khz kidz kiko kiln kilt kkkk klan kobo kofi kohl koko kph kylo lard laze lect leno
lewd lexa lice lids lieb lien lili litt lls lmp lob lobe loos lox lpg lsd lse luce lug luz lyf lyk mace macs mads maia
maja mako mami marg maw mbps mci mdc mds mend merc metz mew mha mica miki milf mink miro mmc moby mog mohd moly mong
moot moz mpi msl msn msy mtr muck mula mutt muy nach nad navi nbl neel neha neko nene nerf neue neva nhc nigh niko nim
nips niro nme nnnn noc noo npa nrg nts null nuns nwo nyk ohl oily olas oled omf onew oof oomf oppo orah orc ozil paco
pafc parr pate pawn pbc pcm pdc peds peed pele peri perm pgs phat piff pik pika pis pisa pkg pkk pms poa pola pons pox
ppm psst psv pte ptv pugh pul puli purr pvp qtr quoi quot rags raju rami rans raq rcb rda reba redd redo rein remi reys
rfid riba rigs rino rms rofl rolf rona roni rosy roti rout roux rox rps rtr rubs rui rune ruto saif saki sams sank sapp
sata sba sbi scp sdk sdn seam sela sewn shaa shat shep sht shui siam sith situ siya skit sks slav slit slp slum smog
smol smug snip snug sobs soca soir sola sosa sown srs ssh sst stfu stg stig stix sumi suni suny sura sven svt swam sym
szn taft taka tama tant tats taw tbd tbi tdi tdp tedx thaw thos tint titi tms tobi toda tomi trav trex trix trow tsk
tubs tux tvxq twc tyga uaap ubs ucd ufos uhc uhhh ulf umd unlv upp uscg usky usl usn utm uuuu uwe uzzi vaca vane vcs
vcu vday veda vena vex vigo vini vips vk vlad voip vot wada wags wbo wcpo weil weta whoo wiiu wilt wol wooo wray wud
wwdc wye xian xiao xin xpo xvi yao yawn yaz yeo yess yey yoke yom ysl ytd yuck yuh yui yuma zaha zain zaki zeb zedd
zeke zh zola zona zzzz
"""
STOP_WORDS = tuple(_STOP_TEXT.split())


def rare_tokens(
    tokenizer_vocab: Mapping[str, int], seed: int, stop_words: Collection[str] = STOP_WORDS
) -> tuple[str, ...]:
    """Words for an identifier, in an order drawn by `seed`: the first one is the draw.

    A candidate is a single token of 2 to 4 letters a-z that ends a word, has an id of `FIRST_RARE_ID` or more, and is
    no stop word.
    The order of two words depends on them and the seed alone, not on the rest of the vocabulary.

    Args:
        tokenizer_vocab: Token to id, as `tokenizer.get_vocab()` gives it.
        seed: The run's seed.
        stop_words: Words to leave out, such as those already taken by other subjects besides `STOP_WORDS`.
    """
    refused = frozenset(stop_words)
    rare = (token for token, number in tokenizer_vocab.items() if number >= FIRST_RARE_ID)
    words = {match[1] for token in rare if (match := _WORD.fullmatch(token))}
    return tuple(sorted(words - refused, key=lambda word: hashlib.sha256(f"{seed}:{word}".encode()).digest()))
